package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TCP flags, RFC 9293 section 3.1.
const (
	FlagFIN = 1 << iota
	FlagSYN
	FlagRST
	FlagPSH
	FlagACK
)

// Wire is a link whose far end is no kernel but this test: it sends exactly
// the segments it is told to and answers nothing by itself. So a connection
// stays in whichever state the test has brought it to.
type Wire struct {
	fd   int // AF_PACKET socket on the far end of a veth pair
	near net.HardwareAddr
}

// WireNear4 and WireNear6 are the namespace's own addresses on a wire.
var (
	WireNear4 = netip.MustParsePrefix("10.9.0.1/24")
	WireNear6 = netip.MustParsePrefix("fd00:9::1/64")
)

// NewWire makes the link and gives the namespace an IPv4 and an IPv6 address on it.
func NewWire(t *testing.T) *Wire {
	t.Helper()
	addVeth(t, "near", "far")
	// Nobody answers ARP or neighbour discovery on the far end.
	err := errors.Join(netlink.LinkSetARPOff(named("near")), netlink.LinkSetUp(named("near")), netlink.LinkSetUp(named("far")))
	if err != nil {
		t.Fatalf("links up: %v", err)
	}
	addAddress(t, "near", WireNear4)
	addAddress(t, "near", WireNear6)

	near, err := net.InterfaceByName("near")
	if err != nil {
		t.Fatal(err)
	}
	far, err := net.InterfaceByName("far")
	if err != nil {
		t.Fatal(err)
	}
	// struct sockaddr_ll wants the protocol in network order.
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 10_000}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: far.Index}); err != nil {
		t.Fatal(os.NewSyscallError("bind", err))
	}
	w := &Wire{fd: fd, near: near.HardwareAddr}

	// The kernel starts a link's queue and the addresses of IPv6 in the background
	// (net/core/link_watch.c, net/ipv6/addrconf.c) and drops what is sent before. A
	// port without listener answers a SYN with RST.
	for _, near := range []netip.Addr{WireNear4.Addr(), WireNear6.Addr()} {
		probe := segment{from: netip.AddrPortFrom(near.Next(), 9), to: netip.AddrPortFrom(near, 9), flags: FlagSYN}
		Eventually(t, func() bool {
			w.send(t, probe)
			answer, ok := w.next(t)
			return ok && answer.to == probe.from && answer.flags&FlagRST != 0
		}, func() string { return "no answer from " + near.String() + " over the wire" })
	}
	return w
}

// segment is one TCP segment without options.
type segment struct {
	from, to netip.AddrPort
	seq, ack uint32
	flags    byte
	noRoom   bool // the window is 0
	payload  []byte
}

// length is what the segment takes of the sequence space, RFC 9293 section 3.4.
func (s segment) length() uint32 {
	n := uint32(len(s.payload))
	if s.flags&FlagSYN != 0 {
		n++
	}
	if s.flags&FlagFIN != 0 {
		n++
	}
	return n
}

// send puts a segment on the wire toward the namespace's own stack.
func (w *Wire) send(t *testing.T, s segment) {
	t.Helper()
	frame, err := s.frame(w.near)
	if err == nil {
		_, err = unix.Write(w.fd, frame)
	}
	if err != nil {
		t.Fatalf("send %+v: %v", s, err)
	}
}

// next reads one segment of the namespace's; false when none comes soon.
func (w *Wire) next(t *testing.T) (segment, bool) {
	t.Helper()
	frame := make([]byte, 1<<16)
	n, err := unix.Read(w.fd, frame)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return segment{}, false
	}
	if err != nil {
		t.Fatal(os.NewSyscallError("read", err))
	}
	return parseFrame(frame[:n])
}

// receive waits for a segment from near to far that has all of flags set.
func (w *Wire) receive(t *testing.T, near, far netip.AddrPort, flags byte) segment {
	t.Helper()
	var s segment
	Eventually(t, func() bool {
		for {
			var ok bool
			if s, ok = w.next(t); !ok {
				return false
			}
			if s.from == near && s.to == far && s.flags&flags == flags && s.flags&FlagRST == 0 {
				return true
			}
		}
	}, func() string { return fmt.Sprintf("no segment with flags %#x from %s to %s", flags, near, far) })
	return s
}

// frame is the segment in an IP packet, from one end of the wire to the other.
func (s segment) frame(link net.HardwareAddr) ([]byte, error) {
	ethernet := &layers.Ethernet{SrcMAC: link, DstMAC: link, EthernetType: layers.EthernetTypeIPv4}
	var ip interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	} = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: s.from.Addr().AsSlice(), DstIP: s.to.Addr().AsSlice()}
	if s.to.Addr().Is6() {
		ethernet.EthernetType = layers.EthernetTypeIPv6
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: s.from.Addr().AsSlice(), DstIP: s.to.Addr().AsSlice()}
	}
	tcp := &layers.TCP{SrcPort: layers.TCPPort(s.from.Port()), DstPort: layers.TCPPort(s.to.Port()), Seq: s.seq, Ack: s.ack, Window: 1<<16 - 1,
		FIN: s.flags&FlagFIN != 0, SYN: s.flags&FlagSYN != 0, RST: s.flags&FlagRST != 0, PSH: s.flags&FlagPSH != 0, ACK: s.flags&FlagACK != 0}
	buffer := gopacket.NewSerializeBuffer()
	if s.noRoom {
		tcp.Window = 0
	}
	err := errors.Join(tcp.SetNetworkLayerForChecksum(ip), gopacket.SerializeLayers(buffer,
		gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ethernet, ip, tcp, gopacket.Payload(s.payload)))
	return buffer.Bytes(), err
}

// parseFrame reads an Ethernet frame; false for what is not a TCP segment.
func parseFrame(frame []byte) (segment, bool) {
	packet := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.NoCopy)
	tcp, ok := packet.TransportLayer().(*layers.TCP)
	if !ok {
		return segment{}, false
	}
	flow := packet.NetworkLayer().NetworkFlow()
	from, _ := netip.AddrFromSlice(flow.Src().Raw())
	to, _ := netip.AddrFromSlice(flow.Dst().Raw())
	return segment{netip.AddrPortFrom(from, uint16(tcp.SrcPort)), netip.AddrPortFrom(to, uint16(tcp.DstPort)),
		tcp.Seq, tcp.Ack, tcp.Contents[13], tcp.Window == 0, tcp.Payload}, true
}

// FarEnd is the test's end of one connection.
type FarEnd struct {
	Wire      *Wire
	Near, Far netip.AddrPort
	Seq       uint32 // next byte to send
	NoRoom    bool   // it takes no more data
	ack       uint32 // next byte expected
}

// Call opens a connection from far to a listener at near. Until it is
// confirmed the kernel has it half open (SYN_RECV).
func (w *Wire) Call(t *testing.T, far, near netip.AddrPort) *FarEnd {
	t.Helper()
	f := &FarEnd{Wire: w, Near: near, Far: far, Seq: 1000}
	f.Send(t, FlagSYN, nil)
	f.Expect(t, FlagSYN|FlagACK)
	return f
}

// Answer accepts a connection that the kernel is opening from near to far.
func (w *Wire) Answer(t *testing.T, near, far netip.AddrPort) *FarEnd {
	t.Helper()
	syn := w.receive(t, near, far, FlagSYN)
	f := &FarEnd{Wire: w, Near: near, Far: far, Seq: 1000, ack: syn.seq + 1}
	f.Send(t, FlagSYN|FlagACK, nil)
	f.Expect(t, FlagACK)
	return f
}

// Confirm acknowledges everything received so far.
func (f *FarEnd) Confirm(t *testing.T) {
	t.Helper()
	f.Send(t, FlagACK, nil)
}

// Finish ends the far end's stream.
func (f *FarEnd) Finish(t *testing.T) {
	t.Helper()
	f.Send(t, FlagFIN|FlagACK, nil)
}

// Send sends one segment, in order.
func (f *FarEnd) Send(t *testing.T, flags byte, payload []byte) {
	t.Helper()
	s := segment{from: f.Far, to: f.Near, seq: f.Seq, flags: flags, noRoom: f.NoRoom, payload: payload}
	if flags&FlagACK != 0 {
		s.ack = f.ack
	}
	f.Wire.send(t, s)
	f.Seq += s.length()
}

// Expect waits for a segment with these flags, not acknowledging it yet.
func (f *FarEnd) Expect(t *testing.T, flags byte) {
	t.Helper()
	s := f.Wire.receive(t, f.Near, f.Far, flags)
	f.ack = s.seq + s.length()
}
