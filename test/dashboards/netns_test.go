package dashboards

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// exporterEnv is set for the run inside the private network namespace: the path of the exporter's binary.
const exporterEnv = "TIMEWAIT_EXPORTER"

// inPrivateNetwork runs the test again in a network namespace of its own, where ports and sysctls are nobody else's, and reports
// whether this run is that one. The binary of the exporter is built outside, where the module cache is.
func inPrivateNetwork(t *testing.T) (exporter string, inside bool) {
	t.Helper()
	if path := os.Getenv(exporterEnv); path != "" {
		if err := prepareNetwork(); err != nil {
			t.Fatal(err)
		}
		return path, true
	}
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skipf("needs Prometheus: %v", err)
	}
	binary := t.TempDir() + "/timewait_exporter"
	build := exec.Command("go", "build", "-o", binary, "./cmd/timewait_exporter")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}

	again := exec.Command(os.Args[0], append(os.Args[1:], "-test.run=^"+t.Name()+"$")...)
	again.Env = append(os.Environ(), exporterEnv+"="+binary)
	again.Stdout, again.Stderr = os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		again.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		again.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		again.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := again.Start(); errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("this machine allows no new network namespace: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	if err := again.Wait(); err != nil {
		t.Errorf("in the private network: %v", err)
	}
	return "", false
}

// The port range of the private network is small, so that few connections use up much of it.
const firstPort, lastPort = 40000, 40499

// prepareNetwork brings up the loopback interface and sets what the load counts on.
func prepareNetwork() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(socket)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	for name, value := range map[string]string{
		"ip_local_port_range": fmt.Sprintf("%d %d", firstPort, lastPort),
		"tcp_tw_reuse":        "0", // on loopback the default takes TIME_WAITs over after a second
	} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}
