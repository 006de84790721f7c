package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"timewait_exporter/collector"
	"timewait_exporter/collector/tcptable"
	"timewait_exporter/diagnosis"
)

// sources are the ways to read the table, the one that knows most first.
func sources(cfg *config) []tcptable.Source {
	ns := cfg.collector.Namespace
	all := []tcptable.Source{tcptable.NewProcNet(ns.Dir)}
	if ns.Own && cfg.collector.Source != collector.SourceProcfs {
		all = []tcptable.Source{tcptable.NewSockDiag(), all[0]} // which knows idle bound ones too
	}
	return all
}

// holders returns the sockets of a port and, as far as that may be known, their programs.
func holders(ctx context.Context, cfg *config, port uint16) (*diagnosis.Listen, error) {
	held, err := socketsOf(ctx, cfg, func(s *tcptable.Socket) bool { return s.Local.Port == port })
	if err != nil {
		return nil, err
	}
	return &diagnosis.Listen{Port: port, Holders: held, Programs: programs(cfg.collector.ProcRoot, held)}, nil
}

// namePrograms names the programs of findings by the sockets that they have open, as far as
// that may be known: of other users only root may.
func namePrograms(ctx context.Context, cfg *config, r *diagnosis.Report) {
	const enough = 256 // sockets of a finding
	concerns := make(map[*diagnosis.Finding][]tcptable.Socket)
	for _, f := range r.Findings {
		if f.Netns == cfg.collector.Namespace.Name && f.Level != diagnosis.Info && (f.Remote != "" || f.Listener != "") {
			concerns[f] = nil
		}
	}
	if len(concerns) == 0 {
		return
	}
	sockets, err := socketsOf(ctx, cfg, func(s *tcptable.Socket) bool {
		wanted := false
		for f, have := range concerns {
			if s.Inode != 0 && len(have) < enough && f.IsAbout(s) {
				concerns[f] = append(have, *s)
				wanted = true
			}
		}
		return wanted
	})
	if err != nil {
		return // the report has said why
	}
	named := programs(cfg.collector.ProcRoot, sockets)
	for f, sockets := range concerns {
		count := make(map[string]int)
		for i := range sockets {
			if program := named[sockets[i].Inode]; program != "" {
				count[program]++
			}
		}
		most := 0
		for _, program := range slices.Sorted(maps.Keys(count)) {
			if count[program] > most {
				f.Program, most = program, count[program]
			}
		}
	}
}

// socketsOf returns the sockets that are wanted.
func socketsOf(ctx context.Context, cfg *config, want func(*tcptable.Socket) bool) (sockets []tcptable.Socket, err error) {
	var errs []error
	for _, source := range sources(cfg) {
		sockets, err = nil, nil
		for s, failed := range source.Sockets(ctx) {
			if failed != nil {
				err = failed
			} else if want(&s) {
				sockets = append(sockets, s)
			}
		}
		if err == nil {
			return sockets, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// programs returns the programs that have these sockets open, by inode, as "nginx (pid 12)".
// Those of other users are root's to see.
func programs(proc string, sockets []tcptable.Socket) map[uint64]string {
	wanted := make(map[string]uint64)
	for i := range sockets {
		if inode := sockets[i].Inode; inode != 0 {
			wanted[fmt.Sprintf("socket:[%d]", inode)] = inode
		}
	}
	found := make(map[uint64]string)
	dirs, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd"))
	for _, dir := range dirs {
		if len(wanted) == 0 {
			break
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			continue // another user's, or it has ended
		}
		for _, file := range files {
			target, err := os.Readlink(filepath.Join(dir, file.Name()))
			if inode, ok := wanted[target]; err == nil && ok {
				process := filepath.Dir(dir)
				comm, _ := os.ReadFile(filepath.Join(process, "comm"))
				found[inode] = fmt.Sprintf("%s (pid %s)", cmp.Or(strings.TrimSpace(string(comm)), "?"), filepath.Base(process))
				delete(wanted, target)
			}
		}
	}
	return found
}
