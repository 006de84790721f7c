package fleet

import (
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// How the named clients of a host come and go: of the 50 the largest stay, and each of
// the others gives way every two minutes to one of the clients of the host.
const (
	staying  = 35
	takeTurn = 8 // scrapes
	regulars = 200
)

// A line of a page is a comment, or a series and its value in the page that it was read from.
type line struct {
	before, after string // the address of a client, if the line has one, stands between them
	client        int    // its rank, or -1
	value         float64
	kind          kind
}

type kind int

const (
	comment kind = iota
	fixed        // limits, versions
	gauge
	counter
)

// fleet serves the page of each host at /N, different at every scrape.
type fleet struct {
	lines []line
	start time.Time
}

func newFleet(p page) *fleet {
	f := &fleet{start: time.Now()}
	ranks := map[string]int{}
	for i := range p.machine.clients {
		ranks[address(firstClient+uint32(i))] = i
	}
	for text := range strings.Lines(p.text) {
		f.lines = append(f.lines, parseLine(text, ranks))
	}
	return f
}

func parseLine(text string, ranks map[string]int) line {
	l := line{before: text, client: -1}
	space := strings.LastIndexByte(text, ' ')
	value, err := strconv.ParseFloat(strings.TrimSpace(text[space+1:]), 64)
	if strings.HasPrefix(text, "#") || err != nil {
		return l
	}
	l.before, l.value = text[:space], value
	name, labels, _ := strings.Cut(l.before, "{")
	l.kind = kindOf(name)
	if _, rest, ok := strings.Cut(labels, `remote_ip="`); ok {
		ip, _, _ := strings.Cut(rest, `"`)
		if rank, ok := ranks[ip]; ok {
			l.client = rank
			l.before, l.after, _ = strings.Cut(l.before, ip)
		}
	}
	return l
}

func kindOf(name string) kind {
	for _, part := range []string{"_limit", "_info", "_port_range_", "_mode", "_success", "_timeout", "_start_time_", "_max", "_threads", "_gogc", "_gomaxprocs"} {
		if strings.Contains(name, part) {
			return fixed
		}
	}
	switch {
	case name == "tcp_ephemeral_ports", name == "tcp_time_wait_duration_seconds":
		return fixed
	case strings.HasSuffix(name, "_total"), strings.HasSuffix(name, "_bucket"), strings.HasSuffix(name, "_count"), strings.HasSuffix(name, "_sum"):
		return counter
	}
	return gauge
}

func (f *fleet) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	host, err := strconv.ParseUint(strings.TrimPrefix(request.URL.Path, "/"), 10, 64)
	if err != nil {
		http.NotFound(w, request)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(f.render(host, uint64(time.Since(f.start)/(15*time.Second)))) // a scraper that has gone
}

// render writes the page of a host at its n-th scrape.
func (f *fleet) render(host, n uint64) []byte {
	random := rand.New(rand.NewPCG(host, n))
	var out []byte
	for i := range f.lines {
		l := &f.lines[i]
		out = append(out, l.before...)
		if l.kind == comment {
			continue
		}
		if l.client >= 0 {
			out = append(out, address(firstClient+uint32(host<<8)+clientAt(host, n, l.client))...)
			out = append(out, l.after...)
		}
		out = append(out, ' ')
		out = strconv.AppendFloat(out, l.at(n, random), 'g', -1, 64)
		out = append(out, '\n')
	}
	return out
}

// clientAt is which of the host's clients holds a rank at the n-th scrape.
func clientAt(host, n uint64, rank int) uint32 {
	if rank < staying {
		return uint32(rank)
	}
	turn := (n + uint64(rank)) / takeTurn
	// Each rank takes its turns among clients that no other rank has.
	others := uint64(regulars-staying) / (50 - staying)
	return uint32(staying) + uint32(uint64(rank-staying)*others+rand.New(rand.NewPCG(host, turn)).Uint64N(others))
}

// at is the value at the n-th scrape: counts move by their square root, as they do
// when clients come independently of each other; 0 stays 0.
func (l *line) at(n uint64, random *rand.Rand) float64 {
	switch {
	case l.kind == fixed, l.value == 0:
		return l.value
	case l.kind == counter:
		step := math.Ceil(l.value / 1000)
		return l.value + step*float64(n) + math.Floor(step*random.Float64())
	case l.value == math.Trunc(l.value):
		return max(0, math.Round(l.value+math.Sqrt(l.value)*random.NormFloat64()))
	}
	return l.value * (1 + 0.05*random.NormFloat64())
}
