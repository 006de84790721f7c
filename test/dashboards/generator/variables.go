package main

import "github.com/grafana/grafana-foundation-sdk/go/dashboard"

// BoardLink leads to another of the dashboards in the same time range and data source.
type BoardLink struct {
	UID, Title string
	// Keep says that all other variables go along too.
	Keep bool
}

func (l BoardLink) build() dashboard.DashboardLink {
	link := dashboard.DashboardLink{
		Title: l.Title, Type: dashboard.DashboardLinkTypeLink, Url: new("/d/" + l.UID), Icon: "dashboard", Tags: []string{}, IncludeVars: l.Keep, KeepTime: true,
	}
	if !l.Keep {
		*link.Url += "?var-datasource=${datasource}"
	}
	return link
}

// Variable selects one value of the label that it is named after, or all.
type Variable struct {
	Name, Label string
	// Values offers the values that the label has in these series of the selected time range.
	Values string
	// Worst offers them in the order of the series' values, and so selects that of the largest.
	Worst string
	// All offers all of them together too, and selects that.
	All bool
}

func (v Variable) build() *dashboard.QueryVariableBuilder {
	builder := dashboard.NewQueryVariableBuilder(v.Name)
	query := "label_values(" + v.Values + ", " + v.Name + ")"
	if v.Worst != "" {
		query = "query_result(sort_desc(max by (" + v.Name + ") (" + v.Worst + ")))"
		builder.Regex("/" + v.Name + `="([^"]+)"/`).Sort(dashboard.VariableSortDisabled)
	} else {
		builder.Sort(dashboard.VariableSortAlphabeticalAsc)
	}
	if v.All {
		builder.Multi(true).IncludeAll(true).Current(dashboard.VariableOption{
			Selected: new(true),
			Text:     dashboard.StringOrArrayOfString{ArrayOfString: []string{"All"}},
			Value:    dashboard.StringOrArrayOfString{ArrayOfString: []string{"$__all"}},
		})
	}
	return builder.
		Label(v.Label).
		Datasource(datasource).
		Definition(query).
		Query(dashboard.StringOrMap{Map: map[string]any{"query": query, "refId": "StandardVariableQuery"}}).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged)
}
