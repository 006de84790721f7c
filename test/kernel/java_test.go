package kernel

import (
	"bufio"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"timewait_exporter/diagnosis"
	"timewait_exporter/test/netns"
)

const (
	// javaServer echoes, and closes a connection when its client has, or never does.
	javaServer = `
import java.io.*; import java.net.*; import java.util.*;
class Server {
  public static void main(String[] args) throws Exception {
    List<Socket> leaked = Collections.synchronizedList(new ArrayList<>());
    ServerSocket server = new ServerSocket();
    server.bind(new InetSocketAddress(args[0], Integer.parseInt(args[1])), 200);
    System.out.println("ready");
    while (true) {
      Socket s = server.accept();
      new Thread(() -> {
        try {
          int b;
          while ((b = s.getInputStream().read()) >= 0) s.getOutputStream().write(b);
          if (args[2].equals("leaks")) leaked.add(s); else s.close();
        } catch (IOException e) { }
      }).start();
    }
  }
}`
	// javaClient keeps one connection, and opens another for each request until that fails.
	javaClient = `
import java.io.*; import java.net.*;
class Client {
  public static void main(String[] args) throws Exception {
    InetSocketAddress to = new InetSocketAddress(args[0], Integer.parseInt(args[1]));
    Socket kept = new Socket();
    kept.connect(to);
    while (true) {
      try (Socket s = new Socket()) {
        s.connect(to);
        s.getOutputStream().write('x');
        s.getInputStream().read();
      } catch (IOException e) {
        System.out.println(e);
        System.in.read();
        kept.close();
        return;
      }
    }
  }
}`
)

// startJava runs a program of Java, and returns the first line that it prints and its pid.
func startJava(t *testing.T, name, source string, args ...string) (line string, pid int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name+".java")
	if err := os.WriteFile(path, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "java", append([]string{"-Xmx64m", "-XX:-UsePerfData", "-XX:TieredStopAtLevel=1", path}, args...)...)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // it ends with the test
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return strings.TrimSpace(line), cmd.Process.Pid
}

// TestReportJava has what people write when they ask for help: a client that opens a connection
// for each request, and a server that never closes. At the first exception a report has
// both, with who it is: to root the process, to a user without any right, who watches, the unit.
func TestReportJava(t *testing.T) {
	if _, err := exec.LookPath("java"); err != nil {
		t.Skip(err)
	}
	nobody := nobody(t)
	netns.Run(t, func(t *testing.T) {
		c := newCgroups(t)
		netns.AddLoopbackAddresses(t, host4) // tcp_tw_reuse is on for loopback
		setPorts(t, 40000, 40099, "")
		_, _ = startJava(t, "Server", javaServer, host4.String(), "9000", "closes")
		var leaking, client int
		c.in(t, "orders.service", func() { _, leaking = startJava(t, "Server", javaServer, host4.String(), "8080", "leaks") })
		for _, source := range []uint16{20000, 20100} {
			s := netns.Service{At: netip.AddrPortFrom(host4, 8080), Family: netns.FamilyOf(host4)}
			for i := range uint16(20) {
				client := netns.NewSocket(t, s.Family)
				client.Bind(t, netip.AddrPortFrom(host4, source+i))
				if err := client.TryConnect(s.At); err != nil {
					t.Fatal(err)
				}
				client.Close(t)
			}
		}
		watching, out := startWatch(t, nobody, "1m")
		var said string
		c.in(t, "payments.service", func() { said, client = startJava(t, "Client", javaClient, host4.String(), "9000") })
		if !strings.Contains(said, "Cannot assign requested address") {
			t.Errorf("the client says %q", said)
		}

		var owners []string
		for _, f := range interrupt(t, watching, out).Findings {
			if f.Level != diagnosis.Info {
				owners = append(owners, strings.Join([]string{f.Code, f.Owner, f.OwnerCertainty, f.Program}, " "))
			}
		}
		want := []string{"TCPEphemeralPortsNearExhaustion payments.service sampled java", "TCPCloseWaitLeak orders.service exact java"}
		if !slices.Equal(owners, want) {
			t.Errorf("watched by nobody: %q, want %q", owners, want)
		}
		r := reportOf(t)
		if len(r.Findings) < 2 {
			t.Fatalf("%d findings: %s", len(r.Findings), r.Summary)
		}
		ports, leak := r.Findings[0], r.Findings[1]
		program := func(pid int) string { return "java (pid " + strconv.Itoa(pid) + ")" }
		if ports.Code != "TCPEphemeralPortsNearExhaustion" || ports.Level != diagnosis.Critical || ports.Remote != host4.String()+":9000" ||
			ports.Evidence[0].Value != 100 || *ports.Evidence[0].Limit != 100 || ports.Program != program(client) {
			t.Errorf("%+v", ports)
		}
		if leak.Code != "TCPCloseWaitLeak" || leak.Listener != host4.String()+":8080" || leak.Remote != host4.String() ||
			leak.Evidence[0].Value != 40 || *leak.Evidence[0].Limit != 40 || leak.Program != program(leaking) {
			t.Errorf("%+v", leak)
		}
		t.Log(ports.Title)
		t.Log(leak.Title)
	})
}
