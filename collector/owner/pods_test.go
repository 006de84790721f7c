package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// podNode is a machine with the logs of a kubelet.
type podNode struct {
	fixture
	logs string
}

func newPodNode(t *testing.T) podNode {
	return podNode{newFixture(t, v2Host, v2Host), t.TempDir()}
}

func (n podNode) log(path string) {
	n.t.Helper()
	n.write(filepath.Join(n.logs, path), "")
}

func TestPods(t *testing.T) {
	n := newPodNode(t)
	slice := "/kubepods.slice/kubepods-pod" + podA_ + ".slice"
	web := n.mkdir(slice + "/cri-containerd-" + id1 + ".scope")
	child := n.mkdir(slice + "/cri-containerd-" + id1 + ".scope/worker")
	pause := n.mkdir(slice + "/cri-containerd-" + id2 + ".scope")
	sandbox := n.mkdir(slice)
	fixed := n.mkdir("/kubepods/burstable/pod" + static + "/" + id2)
	n.log("pods/shop_web-7d4b9_" + podA + "/web/0.log")
	n.log("pods/kube-system_etcd-node1_" + static + "/etcd/0.log")
	n.log("containers/web-7d4b9_shop_web-" + id1 + ".log")
	// Others, and what no kubelet writes.
	for _, name := range []string{"a", "_", "__", "_a_" + podA, "a_b_c_" + podA, "\xff_\xff_\xff", "a_b", "shop_web_"} {
		n.log("pods/" + name + "/x")
	}
	for _, name := range []string{"a.log", "-.log", "a_b_c.log", "a_b_c-" + id2, "a_b_c-" + id2[1:] + ".log", "a_b-" + id2 + ".log", "-" + id2 + ".log", "\xff-\xff.log"} {
		n.log("containers/" + name)
	}
	r := n.resolver(Options{PodLogs: n.logs})
	now := time.Now()
	ids := []uint64{web, child, pause, sandbox, fixed}
	update(t, r, now, ids...)
	wantLabels(t, r, map[uint64]string{
		web: "shop/web-7d4b9/web", child: "shop/web-7d4b9/web", pause: "shop/web-7d4b9/" + id2[:12], sandbox: "shop/web-7d4b9", fixed: "kube-system/etcd-node1/" + id2[:12],
	})
	want := Owner{Kind: KindPod, Runtime: "containerd", Namespace: "shop", Pod: "web-7d4b9", PodUID: podA, Container: "web", ContainerID: id1}
	if got := r.Owner(web); got != want {
		t.Errorf("owner %+v, want %+v", got, want)
	}

	// The link to the container's log may come a moment later.
	n.log("containers/etcd-node1_kube-system_etcd-" + id2 + ".log")
	update(t, r, now.Add(9*time.Second), ids...)
	wantLabels(t, r, map[uint64]string{fixed: "kube-system/etcd-node1/" + id2[:12]})
	update(t, r, now.Add(10*time.Second), ids...)
	wantLabels(t, r, map[uint64]string{fixed: "kube-system/etcd-node1/etcd", sandbox: "shop/web-7d4b9"})

	// What has no name is looked for ever more seldom.
	n = newPodNode(t)
	lonely := n.mkdir("/kubepods/pod" + podA + "/" + id1)
	r = n.resolver(Options{PodLogs: n.logs})
	reads := 0
	for range 24 * 60 * 4 {
		update(t, r, now, lonely)
		if r.podRead.Equal(now) {
			reads++
		}
		now = now.Add(15 * time.Second)
	}
	wantLabels(t, r, map[uint64]string{lonely: "pod:" + podA + "/" + id1[:12]})
	if reads < 24*6 || reads > 24*6+10 {
		t.Errorf("%d reads a day, want one in ten minutes", reads)
	}
}

// TestPodsOfOne has one of the two directories only.
func TestPodsOfOne(t *testing.T) {
	f := func(log, want string) {
		t.Helper()
		n := newPodNode(t)
		id := n.mkdir("/kubepods/pod" + podA + "/" + id1)
		n.log(log)
		r := n.resolver(Options{PodLogs: n.logs})
		update(t, r, time.Now(), id)
		wantLabels(t, r, map[uint64]string{id: want})
	}
	f("pods/shop_web-0_"+podA+"/web/0.log", "shop/web-0/"+id1[:12])
	f("containers/web-0_shop_web-"+id1+".log", "shop/web-0/web")
	f("messages", "pod:"+podA+"/"+id1[:12])
}

// TestPodsUnreadable: then pods have their UIDs.
func TestPodsUnreadable(t *testing.T) {
	n := newPodNode(t)
	id := n.mkdir("/kubepods/pod" + podA + "/" + id1)
	web := n.mkdir("/web.service")
	pods := filepath.Join(n.logs, "pods")
	n.log("pods/shop_web-0_" + podA + "/web/0.log")
	withoutCapabilities(t, func() {
		must(t, os.Chmod(pods, 0))
		defer func() { must(t, os.Chmod(pods, 0o755)) }()
		r := n.resolver(Options{PodLogs: n.logs})
		now := time.Now()
		for range 3 {
			if err := tryUpdate(t, r, now, id, web); !errors.Is(err, fs.ErrPermission) || err.Error() != "open "+pods+": permission denied" {
				t.Errorf("error %v", err)
			}
			now = now.Add(time.Second)
		}
		wantLabels(t, r, map[uint64]string{id: "pod:" + podA + "/" + id1[:12], web: "web.service"})
		must(t, os.Chmod(pods, 0o755))
		update(t, r, now.Add(10*time.Second), id, web)
		wantLabels(t, r, map[uint64]string{id: "shop/web-0/" + id1[:12]})
	})

	// Not a directory.
	n = newPodNode(t)
	id = n.mkdir("/kubepods/pod" + podA + "/" + id1)
	n.log("containers")
	r := n.resolver(Options{PodLogs: n.logs})
	if err := tryUpdate(t, r, time.Now(), id); err == nil || !strings.Contains(err.Error(), filepath.Join(n.logs, "containers")) {
		t.Errorf("error %v", err)
	}
	wantLabels(t, r, map[uint64]string{id: "pod:" + podA + "/" + id1[:12]})
}

// TestPodsBound has more entries than any node.
func TestPodsBound(t *testing.T) {
	n := newPodNode(t)
	id := n.mkdir("/kubepods/pod" + podA + "/" + id1)
	n.log("pods/shop_web-0_" + podA)
	for i := range maxEntries + 2000 {
		if err := os.Link(filepath.Join(n.logs, "pods/shop_web-0_"+podA), fmt.Sprintf("%s/pods/junk-%d", n.logs, i)); err != nil {
			// A file system allows a number of links.
			n.write(fmt.Sprintf("%s/pods/junk-%d", n.logs, i), "")
		}
	}
	r := n.resolver(Options{PodLogs: n.logs})
	err := tryUpdate(t, r, time.Now(), id)
	path := filepath.Join(n.logs, "pods")
	if err == nil || !strings.HasPrefix(err.Error(), path+": there was no time for more than ") && err.Error() != fmt.Sprintf("%s has more than %d entries", path, maxEntries) {
		t.Errorf("error %v", err)
	}
	entries := 0
	err = podLogs(n.logs).names("pods", time.Now().Add(time.Hour), func(string) { entries++ })
	if want := fmt.Sprintf("%s has more than %d entries", path, maxEntries); err == nil || err.Error() != want || entries > maxEntries+512 {
		t.Errorf("error %v after %d entries, want %q", err, entries, want)
	}
	err = podLogs(n.logs).names("pods", time.Now(), func(string) {})
	if err == nil || !strings.HasPrefix(err.Error(), path+": there was no time") {
		t.Errorf("error %v", err)
	}
}
