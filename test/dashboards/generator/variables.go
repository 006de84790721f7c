package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// linkTo leads to another of the dashboards in the same time range and data source; keep says that all other variables go along too.
func linkTo(uid, title string, keep bool) dashboard.DashboardLink {
	link := dashboard.DashboardLink{
		Title: title, Type: dashboard.DashboardLinkTypeLink, Url: new("/d/" + uid), Icon: "dashboard", Tags: []string{}, IncludeVars: keep, KeepTime: true,
	}
	if !keep {
		*link.Url += "?var-datasource=${datasource}"
	}
	return link
}

// instanceVariables select one namespace of one machine.
func instanceVariables() []cog.Builder[dashboard.VariableModel] {
	return []cog.Builder[dashboard.VariableModel]{
		datasourceVariable(),
		labelVariable("job", "Job", `timewait_exporter_build_info`),
		labelVariable("instance", "Instance", `timewait_exporter_build_info{job="$job"}`),
		labelVariable("netns", "Network namespace", `timewait_exporter_netns_info{job="$job",instance="$instance"}`),
	}
}

func datasourceVariable() cog.Builder[dashboard.VariableModel] {
	return dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")
}

// labelVariable offers the values that a label has in the series of the selected time range.
func labelVariable(label, title, series string) *dashboard.QueryVariableBuilder {
	return queryVariable(label, title, "label_values("+series+", "+label+")").Sort(dashboard.VariableSortAlphabeticalAsc)
}

// worstVariable offers the values of a label in the order of the series' values, and so selects that of the largest.
func worstVariable(label, title, series string) *dashboard.QueryVariableBuilder {
	return queryVariable(label, title, "query_result(sort_desc(max by ("+label+") ("+series+")))").
		Regex("/" + label + `="([^"]+)"/`).
		Sort(dashboard.VariableSortDisabled)
}

func queryVariable(name, title, query string) *dashboard.QueryVariableBuilder {
	return dashboard.NewQueryVariableBuilder(name).
		Label(title).
		Datasource(datasource).
		Definition(query).
		Query(dashboard.StringOrMap{Map: map[string]any{"query": query, "refId": "StandardVariableQuery"}}).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged)
}
