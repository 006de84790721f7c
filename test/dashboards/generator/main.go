// The program writes the Grafana dashboards from their descriptions in boards, so that the same question has the same query, colour and
// limit wherever it is asked.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"timewait_exporter/test/e2e/rules"
)

func main() {
	if err := generate("..", "../dashboards"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// generate writes the dashboards of a repository to a folder. The limits that panels draw are those of its alerts, so that a line on a
// dashboard and the alert about it can't disagree.
func generate(repository, folder string) error {
	alerts, err := rules.ReadAlerts(repository + "/deploy/prometheus/timewait_exporter.alerts.yml")
	if err != nil {
		return err
	}
	for _, name := range []string{"host", "destinations", "namespaces", "fleet"} {
		board, err := readBoard(name)
		if err != nil {
			return err
		}
		model, err := board.Build(alerts)
		if err != nil {
			return fmt.Errorf("dashboard %s: %w", board.UID, err)
		}
		raw, err := json.MarshalIndent(model, "", "  ")
		if err != nil {
			return fmt.Errorf("dashboard %s: %w", board.UID, err)
		}
		if err := os.WriteFile(filepath.Join(folder, board.UID+".json"), append(raw, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}
