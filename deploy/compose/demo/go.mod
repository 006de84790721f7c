module timewait_exporter/deploy/compose/demo

go 1.26.8
