package kernelstat

import (
	"context"
	"errors"
	"io/fs"
	"math"
)

// ReadSynLimit reads how many half-open connections any one listener may have, whatever its
// backlog. With SYN cookies, and on a kernel built without
// them, that is math.MaxUint64. Without, the kernel refuses who it does not know from its
// tcp_metrics once less than a quarter of tcp_max_syn_backlog is left (tcp_conn_request in
// net/ipv4/tcp_input.c):
//
//	if (!syncookies && max_syn_backlog - qlen < max_syn_backlog >> 2 && !tcp_peer_is_proven(req, dst))
func ReadSynLimit(ctx context.Context, from Sysctls) (uint64, error) {
	backlog, err := ReadSysctl(ctx, from, "net.ipv4.tcp_max_syn_backlog", 1)
	if err != nil {
		return 0, err
	}
	switch cookies, err := ReadSysctl(ctx, from, "net.ipv4.tcp_syncookies", 1); {
	case errors.Is(err, fs.ErrNotExist):
		return math.MaxUint64, nil
	case err != nil:
		return 0, err
	case cookies[0] != 0:
		return math.MaxUint64, nil
	}
	return min(backlog[0], math.MaxInt32) - min(backlog[0], math.MaxInt32)/4 + 1, nil
}
