// The program writes the Grafana dashboards from one description in Go, so that the same question has the same query, colour and
// limit wherever it is asked.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	alerts := flag.String("alerts", "../deploy/prometheus/timewait_exporter.alerts.yml", "`file` whose limits the panels draw")
	out := flag.String("out", "../dashboards", "`folder` to write the dashboards to")
	flag.Parse()
	if err := generate(*alerts, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func generate(alertsFile, folder string) error {
	alerts, err := ReadAlerts(alertsFile)
	if err != nil {
		return err
	}
	for _, board := range []Board{hostBoard(), destinationsBoard(), fleetBoard()} {
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
