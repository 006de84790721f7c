package main

import (
	"fmt"

	"go.yaml.in/yaml/v3"
)

// The colours are those of Okabe and Ito, "Color Universal Design" (2008): people with any common colour blindness can tell
// them apart, and a state has the same one on every panel of every dashboard.
const (
	blue      = "#0072B2"
	sky       = "#56B4E9"
	green     = "#009E73"
	yellow    = "#F0E442"
	orange    = "#E69F00"
	vermilion = "#D55E00"
	purple    = "#CC79A7"
	grey      = "#999999"
	darkGrey  = "#666666"
	lightGrey = "#BBBBBB"
)

// Colour is one of the palette; the boards' files have its name.
type Colour string

// UnmarshalYAML refuses what is not in the palette.
func (c *Colour) UnmarshalYAML(node *yaml.Node) error {
	var ok bool
	*c, ok = map[string]Colour{
		"blue": blue, "sky": sky, "green": green, "yellow": yellow, "orange": orange, "vermilion": vermilion, "purple": purple, "grey": grey,
	}[node.Value]
	if !ok {
		return fmt.Errorf("line %d: %q is no colour of the palette", node.Line, node.Value)
	}
	return nil
}

// stateColour is by the label value of tcp_connections.
var stateColour = []struct {
	state  string
	colour Colour
}{
	{"established", blue},
	{"syn_sent", yellow},
	{"syn_recv", purple},
	{"fin_wait1", sky},
	{"fin_wait2", green},
	{"time_wait", orange},
	{"close", lightGrey},
	{"close_wait", vermilion},
	{"last_ack", grey},
	{"closing", darkGrey},
}

// severities of alerts, and what a value past their limit and the time in which they fire look like.
var severities = []struct{ severity, alerts, colour string }{
	{"critical", "Critical alerts", vermilion},
	{"warning", "Warnings", orange},
}

// severityColour is "" for a severity that there is not.
func severityColour(severity string) string {
	for _, s := range severities {
		if s.severity == severity {
			return s.colour
		}
	}
	return ""
}
