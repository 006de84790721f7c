module timewait_exporter/test/fleet

go 1.26.8
