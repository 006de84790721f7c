package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"timewait_exporter/test/netns"
)

// openNamespace makes the private network namespace ready for as many sockets as asked.
func openNamespace() error {
	if err := netns.LoopbackUp(); err != nil {
		return err
	}
	for name, value := range map[string]string{
		// Past this many TIME_WAITs the kernel drops new ones.
		"net/ipv4/tcp_max_tw_buckets": "4000000",
		// Or connect() takes over TIME_WAITs on loopback and the table does not grow.
		"net/ipv4/tcp_tw_reuse": "0",
	} {
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// countRows is the kernel's own count of the rows of /proc/net/tcp, made without a walk.
func countRows() (int, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, err
	}
	stat, err := fs.NetSockstat()
	if err != nil {
		return 0, err
	}
	for _, p := range stat.Protocols {
		if p.Protocol == "TCP" && p.TW != nil {
			return p.InUse + *p.TW, nil
		}
	}
	return 0, errors.New("/proc/net/sockstat: no TCP tw")
}

// A builder makes connections to a listener of its own. The picture is that of a host with the
// one address 127.0.0.1: half of the connections come in from clients 127.1.x.y, the other half
// go out to servers 127.2.x.y. Not for concurrent use.
type builder struct {
	listener int // file descriptor, bound to 0.0.0.0: all of 127.0.0.0/8 reaches it
	port     int
	remotes  int
	made     int
}

// Ports of the listeners: below the ephemeral range, so that they take nothing from it.
const (
	fillPort  = 20000 // and one more for each further builder
	churnPort = 20999
)

func newBuilder(port, remotes int) (*builder, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := cmp.Or(unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Listen(fd, 16)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	return &builder{listener: fd, port: port, remotes: remotes}, nil
}

// connect makes the next connection: inbound and outbound ones in turn, each to the next remote.
// ours is the end at 127.0.0.1.
func (b *builder) connect() (ours, theirs int, err error) {
	inbound := b.made%2 == 1
	remote := b.made / 2 % b.remotes
	b.made++

	from, to := [4]byte{127, 0, 0, 1}, [4]byte{127, 2, byte(remote >> 8), byte(remote)}
	if inbound {
		from, to = [4]byte{127, 1, byte(remote >> 8), byte(remote)}, from
	}
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(client)
		}
	}()
	// The address alone, ip(7): the port is chosen by connect(), per destination.
	if err := unix.SetsockoptInt(client, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
		return 0, 0, fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
	}
	if err := unix.Bind(client, &unix.SockaddrInet4{Addr: from}); err != nil {
		return 0, 0, fmt.Errorf("bind %v: %w", net.IP(from[:]), err)
	}
	if err := unix.Connect(client, &unix.SockaddrInet4{Addr: to, Port: b.port}); err != nil {
		return 0, 0, fmt.Errorf("connect %v to %v:%d: %w", net.IP(from[:]), net.IP(to[:]), b.port, err)
	}
	server, _, err := unix.Accept4(b.listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return 0, 0, fmt.Errorf("accept: %w", err)
	}
	if inbound {
		return server, client, nil
	}
	return client, server, nil
}

// timeWait leaves n TIME_WAITs. The end that closes first keeps it: always ours.
func (b *builder) timeWait(n int) error {
	for range n {
		ours, theirs, err := b.connect()
		if err != nil {
			return err
		}
		if err := cmp.Or(unix.Close(ours), unix.Close(theirs)); err != nil {
			return fmt.Errorf("close: %w", err)
		}
	}
	return nil
}

// A table is the socket table under measurement.
type table struct {
	target   int // rows
	refill   bool
	builders []*builder
}

func buildTable(o options) (*table, error) {
	t := &table{target: o.sockets[0], refill: o.mix != "established"}
	for i := range runtime.NumCPU() {
		b, err := newBuilder(fillPort+i, o.remotes)
		if err != nil {
			return nil, err
		}
		t.builders = append(t.builders, b)
	}
	// Connections that stay open, two rows and two files each, until this process ends.
	open := map[string]int{"live": min(1000, t.target/4), "half": t.target / 4, "established": t.target / 2}[o.mix]
	for i := range open {
		if _, _, err := t.builders[0].connect(); err != nil {
			return nil, fmt.Errorf("connection %d of %d to hold: %w", i+1, open, err)
		}
	}
	return t, t.fill()
}

// fill makes up for the TIME_WAITs that have ended, 60 s after they began. More may end while it is
// at work, so it looks again a few times.
func (t *table) fill() error {
	for range 5 {
		rows, err := countRows()
		if err != nil {
			return err
		}
		missing := t.target - rows
		if !t.refill || missing <= t.target/1000 {
			return nil
		}
		if err := t.timeWait(missing); err != nil {
			return err
		}
	}
	return nil
}

// timeWait has all builders leave n together, one thread each.
func (t *table) timeWait(n int) error {
	errs := make([]error, len(t.builders))
	var wg sync.WaitGroup
	for i, b := range t.builders {
		share := n*(i+1)/len(t.builders) - n*i/len(t.builders)
		wg.Go(func() { errs[i] = b.timeWait(share) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// churn opens and closes connections at a rate per second until ctx ends, and returns how many it made.
func churn(ctx context.Context, o options) (int, error) {
	b, err := newBuilder(churnPort, o.remotes)
	if err != nil {
		return 0, err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for {
		select {
		case <-ctx.Done():
			return b.made, nil
		case <-tick.C:
			// Late ticks are made up for.
			if err := b.timeWait(max(0, int(time.Since(start).Seconds()*float64(o.churn))-b.made)); err != nil {
				return b.made, err
			}
		}
	}
}
