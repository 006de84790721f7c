package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER of include/uapi/linux/veth.h.
const vethInfoPeer = 1

// setLinkUp sets IFF_UP and flags, as `ip link set NAME up` does.
func setLinkUp(t *testing.T, name string, flags uint32) {
	t.Helper()
	flags |= unix.IFF_UP
	link := unix.IfInfomsg{Index: linkIndex(t, name), Flags: flags, Change: flags}
	if err := rtnetlink(unix.RTM_NEWLINK, 0, encode(link)); err != nil {
		t.Fatalf("link %s up: %v", name, err)
	}
}

// addVeth makes a pair of joined links: what one sends, the other receives.
func addVeth(t *testing.T, name, peer string) {
	t.Helper()
	peerLink := append(encode(unix.IfInfomsg{}), attribute(unix.IFLA_IFNAME, cString(peer))...)
	info := append(attribute(unix.IFLA_INFO_KIND, cString("veth")),
		attribute(unix.IFLA_INFO_DATA, attribute(vethInfoPeer, peerLink))...)
	link := append(encode(unix.IfInfomsg{}), attribute(unix.IFLA_IFNAME, cString(name))...)
	link = append(link, attribute(unix.IFLA_LINKINFO, info)...)
	err := rtnetlink(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, link)
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
	var flags uint32 = unix.IFA_F_NODAD
	if prefix.IsSingleIP() {
		flags |= unix.IFA_F_NOPREFIXROUTE
	}
	address := unix.IfAddrmsg{Family: unix.AF_INET, Prefixlen: uint8(prefix.Bits()), Index: uint32(linkIndex(t, link))}
	if prefix.Addr().Is6() {
		address.Family = unix.AF_INET6
	}
	body := slices.Concat(encode(address),
		attribute(unix.IFA_FLAGS, encode(flags)),
		attribute(unix.IFA_LOCAL, prefix.Addr().AsSlice()),
		attribute(unix.IFA_ADDRESS, prefix.Addr().AsSlice()))
	err := rtnetlink(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) {
		t.Skipf("this kernel has the family of %s switched off: %v", prefix, err)
	}
	if err != nil {
		t.Fatalf("add address %s to %s: %v", prefix, link, err)
	}
	// The kernel adds the local route of an IPv6 address in the background.
	eventually(t, func() bool {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(prefix.Addr(), 9)))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, func() string { return "no route to " + prefix.String() })
}

// addLocalRoute makes all addresses of prefix this host's own, as
// `ip route add local PREFIX dev lo` does.
func addLocalRoute(t *testing.T, prefix netip.Prefix) {
	t.Helper()
	route := unix.RtMsg{Family: unix.AF_INET, Dst_len: uint8(prefix.Bits()), Table: unix.RT_TABLE_LOCAL,
		Protocol: unix.RTPROT_BOOT, Scope: unix.RT_SCOPE_HOST, Type: unix.RTN_LOCAL}
	body := slices.Concat(encode(route),
		attribute(unix.RTA_DST, prefix.Addr().AsSlice()),
		attribute(unix.RTA_OIF, encode(linkIndex(t, "lo"))))
	if err := rtnetlink(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body); err != nil {
		t.Fatalf("add local route %s: %v", prefix, err)
	}
}

func linkIndex(t *testing.T, name string) int32 {
	t.Helper()
	link, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return int32(link.Index)
}

// encode lays out kernel structs as they are in memory.
func encode(structs ...any) []byte {
	var b []byte
	for _, s := range structs {
		var err error
		if b, err = binary.Append(b, binary.NativeEndian, s); err != nil {
			panic(err) // a struct without a fixed size
		}
	}
	return b
}

// attribute is a struct rtattr with its payload, padded to NLMSG_ALIGNTO.
func attribute(kind uint16, payload []byte) []byte {
	a := encode(unix.RtAttr{Len: uint16(unix.SizeofRtAttr + len(payload)), Type: kind}, payload)
	return append(a, make([]byte, -len(a)&(unix.NLMSG_ALIGNTO-1))...)
}

func cString(s string) []byte { return append([]byte(s), 0) }

// rtnetlink sends one request and returns the kernel's verdict on it.
func rtnetlink(kind, flags uint16, body []byte) error {
	reply, err := netlink(unix.NETLINK_ROUTE, kind, flags|unix.NLM_F_ACK, body)
	if err != nil {
		return err
	}
	if reply.kind != unix.NLMSG_ERROR {
		return fmt.Errorf("rtnetlink: unexpected reply %+v", reply)
	}
	return reply.err()
}

// netlinkReply is the first message of an answer.
type netlinkReply struct {
	kind    uint16
	payload []byte
}

// err is that of an NLMSG_ERROR or NLMSG_DONE: its payload starts with -errno or 0.
func (r netlinkReply) err() error {
	if code := int32(binary.NativeEndian.Uint32(r.payload)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

func netlink(protocol int, kind, flags uint16, body []byte) (netlinkReply, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return netlinkReply{}, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)

	header := unix.NlMsghdr{
		Len:   uint32(unix.SizeofNlMsghdr + len(body)),
		Type:  kind,
		Flags: flags | unix.NLM_F_REQUEST,
	}
	if err := unix.Sendto(fd, encode(header, body), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return netlinkReply{}, os.NewSyscallError("sendto", err)
	}
	reply := make([]byte, 32<<10)
	n, _, err := unix.Recvfrom(fd, reply, 0)
	if err != nil {
		return netlinkReply{}, os.NewSyscallError("recvfrom", err)
	}
	if n < unix.SizeofNlMsghdr+4 {
		return netlinkReply{}, fmt.Errorf("netlink: short reply %q", reply[:n])
	}
	return netlinkReply{binary.NativeEndian.Uint16(reply[4:]), reply[unix.SizeofNlMsghdr:n]}, nil
}
