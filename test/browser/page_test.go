// Package browser has the report's page in a real browser, Debian's chromium.
package browser

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"timewait_exporter/diagnosis"
	"timewait_exporter/test/program"
)

// hostile is a name that does something if it becomes a part of the page.
const hostile = `"><img src=x onerror=hacked=1><script>hacked=1</script>`

var update = flag.Bool("update", false, "keep pictures of the pages in .tools/pictures, and one in docs")

func TestMain(m *testing.M) { program.Main(m, "../..") }

// startBrowser returns a context of a browser.
func startBrowser(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox)...) // its sandbox is not for root
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	do(t, ctx)
	return ctx
}

// open opens a page in a tab of its own, on a screen of a width that is light or dark. Nothing may go wrong in it, nor
// be forbidden.
func open(t *testing.T, browser context.Context, url string, width int64, scheme string, before ...chromedp.Action[chromedp.Void]) context.Context {
	t.Helper()
	var console sync.WaitGroup
	t.Cleanup(console.Wait)
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	do(t, ctx, chromedp.EmulateViewport(width, 900), command(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	}))
	messages := chromedp.Console(ctx)
	console.Go(func() {
		for m, err := range messages {
			if err == nil && m.Source != "network" { // what the exporter does not answer is the page's to tell
				t.Errorf("console: %s: %s", m.Type, m.Text)
			}
		}
	})
	do(t, ctx, append(before, chromedp.Navigate(url))...)
	return ctx
}

func command[P, R any](c cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, c, params)
		return err
	})
}

func do(t *testing.T, ctx context.Context, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatal(err)
	}
}

// eval returns what an expression is in the page.
func eval[T any](t *testing.T, ctx context.Context, expression string) T {
	t.Helper()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("%.200s: %v", expression, err)
	}
	return value
}

// eventually waits until an expression is true in the page.
func eventually(t *testing.T, ctx context.Context, expression string) {
	t.Helper()
	program.Eventually(t, func() error {
		if !eval[bool](t, ctx, expression) {
			return fmt.Errorf("%s is not true of\n%s", expression, eval[string](t, ctx, "document.body.innerText"))
		}
		return nil
	})
}

// machine is a copy of one of the collector's fixtures that has a name.
func machine(t *testing.T, fixture, name string) (proc string) {
	t.Helper()
	proc = t.TempDir()
	if err := os.CopyFS(proc, os.DirFS("../../collector/testdata/"+fixture+"/proc")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(proc, "sys/kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, proc, "sys/kernel/hostname", name)
	return proc
}

func write(t *testing.T, proc, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(proc, name), []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// busy is a machine whose program opens a connection for each request: 24,200 of its 28,232 ports toward
// a database are in TIME_WAIT, and none ends in the next ten seconds.
func busy(t *testing.T) (proc string) {
	t.Helper()
	const clients, queries, waiting = 40, 12, 24_200
	proc = machine(t, "client_near_exhaustion", "web1.example.com")
	var rows strings.Builder
	rows.WriteString("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n")
	row := func(local, remote string, state, timer, left, inode int) {
		fmt.Fprintf(&rows, "%-149s\n", fmt.Sprintf("   0: %s %s %02X 00000000:00000000 %02X:%08X 00000000     0        0 %d 1 0000000000000000 20 0 0 10 -1", local, remote, state, timer, left, inode))
	}
	row("00000000:01BB", "00000000:0000", 0x0A, 0, 0, 1)
	for i := range clients {
		row("0A0200C0:01BB", fmt.Sprintf("%08X:C000", 0x0A6433C6+i%7<<24), 0x01, 0, 0, 100+i)
	}
	for i := range queries {
		row(fmt.Sprintf("0A0200C0:%04X", 60000+i), "140200C0:1538", 0x01, 0, 0, 200+i)
	}
	for i := range waiting { // the oldest ends in 11 s
		row(fmt.Sprintf("0A0200C0:%04X", 32768+i), "140200C0:1538", 0x06, 3, 1100+4900*i/waiting, 0)
	}
	write(t, proc, "net/tcp", strings.TrimSuffix(rows.String(), "\n"))
	write(t, proc, "net/sockstat", fmt.Sprintf("sockets: used 200\nTCP: inuse %d orphan 0 tw %d alloc 60 mem 9", clients+queries+1, waiting))
	write(t, proc, "sys/net/ipv4/ip_local_port_range", "32768 60999")
	write(t, proc, "sys/net/ipv4/ip_local_reserved_ports", "")
	return proc
}

// serve has the exporter serve a machine at an address.
func serve(t *testing.T, proc, at string, more ...string) (e *program.Process, address string) {
	t.Helper()
	e = program.Start(t, exec.Command(program.Path(), append(more, "--path.procfs="+proc, "--web.listen-address="+at)...))
	return e, e.Address(t)
}

// wantFit looks for what can't be seen on a screen of this width, or used without a mouse or without eyes.
func wantFit(t *testing.T, ctx context.Context) {
	t.Helper()
	const axe = "../../.tools/axe/node_modules/axe-core/axe.min.js"
	rules, err := os.ReadFile(axe)
	if err != nil {
		t.Skipf("%v: make browser-test installs it", err)
	}
	eval[chromedp.Void](t, ctx, string(rules))
	for _, violation := range eval[[]string](t, ctx, `axe.run().then((r) => r.violations.map((v) => v.id + ": " + v.nodes.map((n) => n.html + " " + n.failureSummary).join("\n")))`) {
		t.Error(violation)
	}
	for _, element := range eval[[]string](t, ctx, `[...document.querySelectorAll("body, body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && e.children.length === 0).map((e) => e.outerHTML.slice(0, 200))`) {
		t.Errorf("beyond the right edge: %s", element)
	}
	if width := eval[int](t, ctx, "document.documentElement.scrollWidth - innerWidth"); width > 0 {
		t.Errorf("%d pixels have to be scrolled to", width)
	}
}

// TestPage has machines in trouble, well and of hostile names on a phone, a laptop and a wide screen, light
// and dark.
func TestPage(t *testing.T) {
	browser := startBrowser(t)
	long := strings.Repeat("long", 16)
	for _, m := range []struct{ fixture, proc, name, verdict string }{
		{"busy", busy(t), "web1.example.com", "CRITICAL"},
		{"backend_gone", machine(t, "backend_gone", long), long, "CRITICAL"},
		{"quiet_host", machine(t, "quiet_host", "host1"), "host1", "OK"},
		{"gvisor", machine(t, "gvisor", hostile), hostile, "OK"},
	} {
		_, address := serve(t, m.proc, "127.0.0.1:0")
		for _, width := range []int64{360, 1280, 1920} {
			for _, scheme := range []string{"light", "dark"} {
				t.Run(fmt.Sprintf("%s_%d_%s", m.fixture, width, scheme), func(t *testing.T) {
					ctx := open(t, browser, "http://"+address+"/", width, scheme)
					if got := eval[string](t, ctx, `document.querySelector("main strong").textContent`); got != m.verdict {
						t.Errorf("the verdict is %q, want %q", got, m.verdict)
					}
					if got := eval[string](t, ctx, `document.querySelector("header strong").textContent`); got != m.name {
						t.Errorf("the host is %q, want %q", got, m.name)
					}
					background := eval[string](t, ctx, "getComputedStyle(document.body).backgroundColor")
					if dark := background != "rgb(255, 255, 255)"; dark != (scheme == "dark") {
						t.Errorf("the background is %s", background)
					}
					wantFit(t, ctx)
					if *update {
						picture(t, ctx, fmt.Sprintf("%s_%d_%s", m.fixture, width, scheme))
					}
				})
			}
		}
	}
}

// picture keeps what a reader sees first, and the one that the documents show.
func picture(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	files := []string{"../../.tools/pictures/" + name + ".png"}
	if name == "busy_1280_light" {
		files = append(files, "../../docs/report.png")
	}
	for _, file := range files {
		if err := os.WriteFile(file, png, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWithoutScript has the same to read where no script may run.
func TestWithoutScript(t *testing.T) {
	browser := startBrowser(t)
	_, address := serve(t, machine(t, "client_near_exhaustion", "web1"), "127.0.0.1:0")
	const text = `document.querySelector("main").innerText.replace(/read at .*/, "")`
	with := eval[string](t, open(t, browser, "http://"+address+"/", 1280, "light"), text)
	ctx := open(t, browser, "http://"+address+"/", 1280, "light",
		command(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}))
	if without := eval[string](t, ctx, text); without != with {
		t.Errorf("without scripts it is\n%s\nwith\n%s", without, with)
	}
	if !strings.Contains(eval[string](t, ctx, "document.body.innerText"), "reload for newer numbers") {
		t.Error("it does not say that it has to be reloaded")
	}
	if eval[bool](t, ctx, `document.getElementById("pause").checkVisibility()`) {
		t.Error("it has a button that does nothing")
	}
}

// TestRefresh changes what is true of the machine under a reader's eyes, and ends the exporter.
func TestRefresh(t *testing.T) {
	browser := startBrowser(t)
	proc := machine(t, "client_near_exhaustion", "web1")
	e, address := serve(t, proc, "127.0.0.1:0")
	ctx := open(t, browser, "http://"+address+"/", 360, "light")
	// The reader opens what is closed, with the keyboard, and reads on below.
	eval[chromedp.Void](t, ctx, `document.querySelector("details.info > summary").focus()`)
	do(t, ctx, chromedp.KeyEvent(kb.Enter))
	const state = `[document.querySelector("details.info").open, document.activeElement.innerText, scrollY].join()`
	mine := eval[string](t, ctx, `scrollTo(0, 700), `+state)
	if !strings.HasPrefix(mine, "true,INFO ") || !strings.HasSuffix(mine, ",700") {
		t.Fatalf("at first: %s", mine)
	}
	before := eval[string](t, ctx, `document.querySelector("time").dateTime`)
	eventually(t, ctx, `document.querySelector("time").dateTime !== "`+before+`"`)
	if now := eval[string](t, ctx, state); now != mine {
		t.Errorf("after a refresh: %s, before: %s", now, mine)
	}

	// What is critical goes, and comes again.
	write(t, proc, "sys/net/ipv4/ip_local_port_range", "32768 60999")
	eventually(t, ctx, `document.querySelector("details.critical") === null`)
	if now := eval[string](t, ctx, state); !strings.HasPrefix(now, "true,INFO ") {
		t.Errorf("without the finding above: %s", now)
	}
	write(t, proc, "sys/net/ipv4/ip_local_port_range", "40000 40199")
	eventually(t, ctx, `document.title.startsWith("CRITICAL") && document.querySelector("details.critical").open`)
	wantFit(t, ctx)

	e.Stop(t)
	eventually(t, ctx, `/^These numbers are old: no answer since /.test(document.getElementById("old").textContent)`)
	wantFit(t, ctx)
	serve(t, proc, address)
	eventually(t, ctx, `document.getElementById("old").textContent === ""`)

	do(t, ctx, chromedp.Click(chromedp.ID("pause")))
	before = eval[string](t, ctx, `document.querySelector("time").dateTime`)
	time.Sleep(6 * time.Second)
	if after := eval[string](t, ctx, `document.querySelector("time").dateTime`); after != before {
		t.Error("it goes on while it is paused")
	}
	do(t, ctx, chromedp.Click(chromedp.ID("pause")))
	eventually(t, ctx, `document.querySelector("time").dateTime !== "`+before+`"`)
}

// TestPassword has the script's requests carry what the reader has typed.
func TestPassword(t *testing.T) {
	browser := startBrowser(t)
	config := filepath.Join(t.TempDir(), "web.yml")
	// bcrypt of "secret"
	if err := os.WriteFile(config, []byte("basic_auth_users: {reader: $2a$04$rlljN5zkNy/vwsrnnm6XKuUmQIYU/okfCW8W6SDwI3ckNlV3jMUB.}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, address := serve(t, machine(t, "quiet_host", "host1"), "127.0.0.1:0", "--web.config.file="+config)
	ctx := open(t, browser, "http://reader:secret@"+address+"/", 1280, "light")
	before := eval[string](t, ctx, `document.querySelector("time").dateTime`)
	eventually(t, ctx, `document.querySelector("time").dateTime !== "`+before+`"`)
}

// TestHostileNames has a page without any policy to help: names stay text when it is loaded, and when the
// script takes the next one.
func TestHostileNames(t *testing.T) {
	browser := startBrowser(t)
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServerFS(diagnosis.HTMLFiles()))
	asked := 0
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		asked++
		name := fmt.Sprint(hostile, asked)
		r := diagnosis.Diagnose(diagnosis.Facts{Host: name})
		r.Verdict, r.Summary = diagnosis.Critical, name
		r.Findings = []*diagnosis.Finding{{
			Code: name, Level: diagnosis.Critical, Title: name, Cause: name, Netns: name, Owner: name, Program: name, Remote: name, Listener: name,
			Remedy: []string{name}, Evidence: []diagnosis.Evidence{{Name: name, Unit: name}},
		}}
		r.Tables.Owners = []diagnosis.OwnerRow{{Netns: name, Owner: name, OwnerConnections: map[string]uint64{name: 1}}}
		r.Tables.Remotes = []diagnosis.RemoteRow{{Netns: name, RemoteIP: name}}
		_ = r.WriteHTML(w, nil)
	})
	web := httptest.NewServer(mux)
	defer web.Close()
	ctx := open(t, browser, web.URL, 1280, "light")
	for _, n := range []string{"1", "2"} {
		eventually(t, ctx, `document.querySelector("h1").textContent.endsWith("`+n+`")`)
		if eval[bool](t, ctx, `"hacked" in window || document.querySelector("img, main script") !== null`) {
			t.Errorf("a name became a part of the page:\n%s", eval[string](t, ctx, "document.documentElement.outerHTML"))
		}
	}
}
