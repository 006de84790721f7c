# What pint asks of the rules here besides its own checks:
#   pint --offline --config pint.hcl lint timewait_exporter.rules.yml timewait_exporter.alerts.yml

rule {
  match {
    kind = "alerting"
  }
  label "severity" {
    severity = "bug"
    value    = "warning|critical"
    required = true
  }
  annotation "summary" {
    severity = "bug"
    value    = ".+"
    required = true
  }
  annotation "description" {
    severity = "bug"
    value    = "(?s).+"
    required = true
  }
  annotation "runbook_url" {
    severity = "bug"
    value    = "http://.+/runbooks/{{ $alert }}"
    required = true
  }
  annotation "dashboard" {
    severity = "bug"
    value    = "/d/timewait-.+"
    required = true
  }
}

# An alert says of which target it is.
rule {
  match {
    kind = "alerting"
  }
  aggregate ".+" {
    severity = "bug"
    keep     = ["job", "instance"]
  }
}
