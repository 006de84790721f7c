package diagnosis

import "timewait_exporter/collector/kernelstat"

// nodeLimits finds limits of the whole machine that are near: orphans, memory, file handles.
func (l *look) nodeLimits() {
	if l.ns != l.facts.Namespaces[0] {
		return // they are the same for all
	}
	l.orphans()
	l.memory()
	l.fileHandles()
}

func (l *look) orphans() {
	held, most, ok := l.share(kernelstat.Sockstat("orphan"), orphanLimit)
	if !ok {
		l.unknown("TCPOrphansNearLimit", "net.ipv4.tcp_max_orphans is shown in the first network namespace only")
		return
	}
	l.limit("orphans", held, most, "sockets", "net.ipv4.tcp_max_orphans")
	if held <= orphansNear*most {
		return
	}
	f := l.find("TCPOrphansNearLimit", Warning, "closed connections that still send are at %s of their limit: %s of %s", percent(held/most), number(held), number(most))
	if held >= most {
		f.Code, f.Level, f.Title = "TCPConnectionsAbortedForMemory", Critical, "the kernel resets connections: "+number(held)+" that were closed still send, as many as it keeps"
	}
	f.Cause = "The peers are slow, gone, or attack. From one half on the kernel resets those with a slow peer, at the limit all further ones: the last bytes of an answer are lost."
	f.against("orphans", held, most, "sockets", "net.ipv4.tcp_max_orphans")
	f.remedy("Block a peer that attacks: ss -tn state fin-wait-1 shows whose they are.")
	f.remedy("Raise net.ipv4.tcp_max_orphans. Costs up to 64 kB of memory for each.")
}

func (l *look) memory() {
	level := func(place int) kernelstat.Number { return kernelstat.SysctlPlace("net.ipv4.tcp_mem", place, 3) }
	held, pressure, ok := l.share(kernelstat.Sockstat("mem"), level(1))
	high, ok2 := l.kernel(level(2))
	if !ok || !ok2 {
		l.unknown("TCPMemoryPressure", "net.ipv4.tcp_mem is shown in the first network namespace only")
		return
	}
	l.limit("memory", held, high, "pages", "net.ipv4.tcp_mem")
	if held <= memoryPressure*pressure {
		return
	}
	f := l.find("TCPMemoryPressure", Warning, "TCP's buffers take %s of the memory from which on the kernel saves it", percent(held/pressure))
	if held >= high {
		f.Code, f.Level, f.Title = "TCPConnectionsAbortedForMemory", Critical, "the kernel resets connections: TCP's buffers take all the memory they may"
	}
	f.Cause = "Programs do not read their sockets, or there are too many connections for the memory. The kernel shrinks windows and drops what it has queued; at the high level it resets connections."
	f.against("memory", held, pressure, "pages", "net.ipv4.tcp_mem")
	f.remedy("Find the program with the largest Recv-Q: ss -tnp. Restart it. Costs what is under way.")
}

func (l *look) fileHandles() {
	held, most, ok := l.share(kernelstat.SysctlPlace("fs.file-nr", 0, 3), kernelstat.SysctlPlace("fs.file-nr", 2, 3))
	if !ok {
		l.unknown("FileHandlesNearLimit", "fs.file-nr is not known")
		return
	}
	l.limit("file_handles", held, most, "files", "fs.file-max")
	if held <= fileHandlesNear*most {
		return
	}
	// Sockets that are never closed are a file each.
	for _, claim := range []string{"inbound CLOSE_WAIT", "outbound CLOSE_WAIT"} {
		if f := l.claims[claim]; f != nil {
			f.Level = Critical
			f.against("file_handles", held, most, "files", "fs.file-max")
			return
		}
	}
	f := l.find("FileHandlesNearLimit", Critical, "%s of the machine's file handles are open: %s of %s", percent(held/most), number(held), number(most))
	f.Cause = "At the limit no program without privileges can open a file, accept or connect: \"Too many open files in system\". Sockets that are never closed are the usual cause."
	f.against("file_handles", held, most, "files", "fs.file-max")
	f.remedy("sysctl -w fs.file-max=%s. Costs kernel memory as they are used.", number(2*most))
	f.remedy("Find the program with most open files (ls /proc/*/fd | wc -l by process) and restart it. Costs what is under way.")
}
