{{/* Names as `helm create` makes them, so that users find what they expect. */}}
{{- define "timewait-exporter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "timewait-exporter.fullname" -}}
{{- $name := include "timewait-exporter.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "timewait-exporter.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "timewait-exporter.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* These can't change in the life of a DaemonSet. */}}
{{- define "timewait-exporter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "timewait-exporter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "timewait-exporter.labels" -}}
{{ include "timewait-exporter.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: metrics
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "timewait-exporter.image" -}}
{{- with .Values.image }}
{{- .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- with .digest }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{/* The endpoint of a monitor. Takes a list of the chart's context and the monitor's values. */}}
{{- define "timewait-exporter.endpoint" -}}
{{- $values := (index . 0).Values }}
{{- if and $values.podMonitor.enabled $values.serviceMonitor.enabled }}
{{- fail "podMonitor.enabled and serviceMonitor.enabled are both true: each node would be scraped twice. Enable one of them." }}
{{- end }}
{{- with index . 1 -}}
port: metrics
# namespace, pod and container are those of who has the sockets, not of the exporter.
honorLabels: true
{{- if $values.webConfig.tlsSecret }}
scheme: https
{{- end }}
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .basicAuth }}
basicAuth:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tlsConfig }}
tlsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
# instance stays the node's address and port: the alerts' runbook_url is built from it.
relabelings:
  - targetLabel: job
    replacement: timewait-exporter
  - sourceLabels: [__meta_kubernetes_pod_node_name]
    targetLabel: node
  {{- with .relabelings }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Rules and dashboards are links to files outside the chart's folder. Takes the path of what is not there. */}}
{{- define "timewait-exporter.lostLink" -}}
{{- fail (printf "%s: the link is lost. Flux leaves links out of a Git source, and git on Windows makes text files of them. Install the chart as helm package makes it, or leave prometheusRule and dashboards off." .) }}
{{- end }}
