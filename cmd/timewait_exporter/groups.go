package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/alecthomas/kingpin/v2"

	"timewait_exporter/collector/tally"
)

// remoteGroups is the value of a flag that may be there several times, each
// NAME=CIDR[,CIDR…]; those of one name are one group.
type remoteGroups struct {
	flag   string
	groups *[]tally.Group
}

func addRemoteGroups(app *kingpin.Application, flag, help string, groups *[]tally.Group) {
	app.Flag(flag, help).PlaceHolder("NAME=CIDR[,CIDR...]").SetValue(remoteGroups{flag, groups})
}

func (g remoteGroups) IsCumulative() bool { return true }

func (g remoteGroups) String() string { return "" }

func (g remoteGroups) Set(text string) error {
	if err := g.add(text); err != nil {
		return fmt.Errorf("--%s: %w", g.flag, err)
	}
	return nil
}

func (g remoteGroups) add(text string) error {
	name, cidrs, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("%q is not NAME=CIDR[,CIDR...]", text)
	}
	if err := checkGroupName(name); err != nil {
		return err
	}
	at := slices.IndexFunc(*g.groups, func(other tally.Group) bool { return other.Name == name })
	if at < 0 {
		at = len(*g.groups)
		*g.groups = append(*g.groups, tally.Group{Name: name})
	}
	for cidr := range strings.SplitSeq(cidrs, ",") {
		prefix, err := parseCIDR(cidr)
		if err != nil {
			return err
		}
		for i, other := range *g.groups {
			if taken := slices.IndexFunc(other.Prefixes, prefix.Overlaps); i != at && taken >= 0 {
				return fmt.Errorf("%s overlaps %s of group %q", prefix, other.Prefixes[taken], other.Name)
			}
		}
		(*g.groups)[at].Prefixes = append((*g.groups)[at].Prefixes, prefix)
	}
	return nil
}

// checkGroupName refuses what no reader could tell from another value of remote_ip.
func checkGroupName(name string) error {
	_, notAddress := netip.ParseAddr(name)
	_, notPrefix := netip.ParsePrefix(name)
	switch {
	case name == "":
		return errors.New("a group has an empty name")
	case name == "other" || name == "unknown":
		return fmt.Errorf("the name %q is taken", name)
	case notAddress == nil || notPrefix == nil:
		return fmt.Errorf("the name %q is an address", name)
	case !utf8.ValidString(name) || strings.TrimSpace(name) != name || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return fmt.Errorf("the name %q is not of printable characters", name)
	}
	return nil
}

// parseCIDR parses a network without bits behind its prefix. One of IPv4 addresses in
// IPv6 notation is one of IPv4 addresses, as the connections of dual-stack sockets are.
func parseCIDR(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return prefix, fmt.Errorf("%q is not a CIDR such as 10.0.0.0/8, or 10.0.0.1/32 for one address", text)
	}
	if masked := prefix.Masked(); prefix != masked {
		return prefix, fmt.Errorf("%q has bits set behind its prefix: %s or %s/%d?", text, masked, prefix.Addr(), prefix.Addr().BitLen())
	}
	if addr := prefix.Addr(); addr.Is4In6() {
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
	}
	return prefix, nil
}
