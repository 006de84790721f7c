package tcptable

import (
	"encoding/binary"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestParseClosed reads what the kernel has told, whole, cut at each byte and of another kind.
func TestParseClosed(t *testing.T) {
	at := func(local, remote string, table Table, in, out uint32, acknowledged bool) Closed {
		return Closed{endpoint(local), endpoint(remote), table, in, out, acknowledged}
	}
	events := capture(t, "closes")
	var got []Closed
	for _, event := range events {
		var c Closed
		is, err := parseClosed(event, &c)
		if err != nil {
			t.Fatal(err)
		}
		if is {
			got = append(got, c)
		}
	}
	want := []Closed{
		at("127.0.0.1:28000", "127.0.0.1:9000", TCP, 3, 2, true),
		at("127.0.0.1:9000", "127.0.0.1:28000", TCP, 2, 3, true),
		at("[::1]:28001", "[::1]:9002", TCP6, 0, 0, false),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	for n := range events[0] {
		var c Closed
		if _, err := parseClosed(events[0][:n], &c); err == nil {
			t.Errorf("no error for its first %d bytes", n)
		}
	}
	other := slices.Clone(events[0])
	binary.NativeEndian.PutUint16(other[4:], unix.NLMSG_DONE)
	if _, err := parseClosed(other, new(Closed)); err == nil {
		t.Error("no error for another message")
	}
}

// TestInfoOffsets holds the places of tcp_info to those that golang.org/x/sys/unix has.
func TestInfoOffsets(t *testing.T) {
	for name, want := range map[string]uintptr{
		"Last_ack_recv": lastAck, "Bytes_acked": bytesAcked, "Data_segs_in": dataSegsIn, "Data_segs_out": dataSegsOut,
	} {
		if field, ok := reflect.TypeFor[unix.TCPInfo]().FieldByName(name); !ok || field.Offset != want {
			t.Errorf("%s: %d, want %d", name, field.Offset, want)
		}
	}
}
