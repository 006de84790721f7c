package netns

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// named is the link of that name, for requests that need no more of it.
func named(name string) netlink.Link {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	return &netlink.Device{LinkAttrs: attributes}
}

// addVeth makes a pair of joined links: what one sends, the other receives.
func addVeth(t *testing.T, name, peer string) {
	t.Helper()
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: *named(name).Attrs(), PeerName: peer})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("this kernel has no veth links: %v", err)
	}
	if err != nil {
		t.Fatalf("add veth %s: %v", name, err)
	}
}

// addAddress is `ip address add PREFIX dev LINK nodad`: an address whose
// duplicate detection is still running can't be bound to. The prefix of a
// single address gets no route of its own (noprefixroute): on lo it would be a
// rejecting one, which IPv6 may take for a moment instead of the local one.
func addAddress(t *testing.T, link string, prefix netip.Prefix) {
	t.Helper()
	flags := unix.IFA_F_NODAD
	if prefix.IsSingleIP() {
		flags |= unix.IFA_F_NOPREFIXROUTE
	}
	err := netlink.AddrAdd(named(link), &netlink.Addr{IPNet: ipNet(prefix), Flags: flags})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) {
		t.Skipf("this kernel has the family of %s switched off: %v", prefix, err)
	}
	if err != nil {
		t.Fatalf("add address %s to %s: %v", prefix, link, err)
	}
	// The kernel adds the local route of an IPv6 address in the background.
	to := prefix.Addr()
	if to.Is6() && to.IsLinkLocalUnicast() {
		to = to.WithZone(link)
	}
	Eventually(t, func() bool {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, func() string { return "no route to " + prefix.String() })
}

// AddLoopbackAddresses gives the namespace addresses outside 127/8 and ::1:
// the kernel treats those two apart in tcp_tw_reuse=2.
func AddLoopbackAddresses(t *testing.T, addresses ...netip.Addr) {
	t.Helper()
	for _, a := range addresses {
		addAddress(t, "lo", netip.PrefixFrom(a, a.BitLen()))
	}
}

// AddLinks makes two links on which the namespace has the same link-local address, near,
// and on each a peer, far, which answers nothing. It returns the links' numbers.
func AddLinks(t *testing.T, near, far netip.Addr) (numbers []string) {
	t.Helper()
	addVeth(t, "link0", "link1")
	for _, name := range []string{"link0", "link1"} {
		if err := netlink.LinkSetUp(named(name)); err != nil {
			t.Fatalf("link %s up: %v", name, err)
		}
		addAddress(t, name, netip.PrefixFrom(near, 64))
		link, err := net.InterfaceByName(name)
		if err == nil { // nobody is to be asked who has the address
			err = netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Index, Family: unix.AF_INET6, State: unix.NUD_PERMANENT,
				IP: far.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}})
		}
		if err != nil {
			t.Fatalf("add neighbour %s on %s: %v", far, name, err)
		}
		numbers = append(numbers, strconv.Itoa(link.Index))
	}
	return numbers
}

// AddLocalRoute makes all addresses of prefix this host's own, as
// `ip route add local PREFIX dev lo` does.
func AddLocalRoute(t *testing.T, prefix netip.Prefix) {
	t.Helper()
	lo, err := net.InterfaceByName("lo")
	if err == nil {
		err = netlink.RouteAdd(&netlink.Route{Dst: ipNet(prefix), LinkIndex: lo.Index,
			Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST, Type: unix.RTN_LOCAL})
	}
	if err != nil {
		t.Fatalf("add local route %s: %v", prefix, err)
	}
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}

// SockDiag is the kernel's answer to who asks sock_diag(7) for TCP: an error where it has
// none.
func SockDiag() error {
	request := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	// struct inet_diag_req_v2 of include/uapi/linux/inet_diag.h: no state at all.
	request.AddRawData(slices.Concat([]byte{unix.AF_INET, unix.IPPROTO_TCP}, make([]byte, 54)))
	_, err := request.Execute(unix.NETLINK_INET_DIAG, 0)
	return err
}
