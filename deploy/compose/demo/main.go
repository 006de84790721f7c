// Demo is what timewait_exporter watches in the compose file: a client with two
// bugs, the server that it talks to, and the pager of whoever is on call.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `usage: demo server ADDRESS
       demo client [-pooled] [-rate N] [-leak D] URL
       demo pager ADDRESS`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New(usage)
	}
	switch args[0] {
	case "server":
		return serve(ctx, args[1], http.HandlerFunc(answer))
	case "pager":
		return serve(ctx, args[1], http.HandlerFunc(page))
	case "client":
		flags := flag.NewFlagSet("client", flag.ContinueOnError)
		pooled := flags.Bool("pooled", false, "keep connections and use them again: the cure")
		rate := flags.Float64("rate", 14, "requests a second")
		leak := flags.Duration("leak", 3*time.Second, "time between responses that are not closed")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		c := client{url: flags.Arg(0), pooled: *pooled, leaking: &http.Client{Transport: &http.Transport{
			// As in Java. With keepalive the kernel would find out that the server has forgotten
			// the connection, and end it.
			DialContext: (&net.Dialer{KeepAlive: -1}).DialContext,
		}}}
		return c.run(ctx, time.Duration(float64(time.Second) / *rate), *leak)
	}
	return errors.New(usage)
}

// serve ends idle connections after 5 s, as every server does sooner or later. A
// client that never closes its end then has them in CLOSE_WAIT.
func serve(ctx context.Context, address string, handler http.Handler) error {
	server := &http.Server{Addr: address, Handler: handler, IdleTimeout: 5 * time.Second, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func answer(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") }

// page prints what Alertmanager's webhook says.
func page(_ http.ResponseWriter, request *http.Request) {
	var message struct {
		Receiver string `json:"receiver"`
		Alerts   []struct {
			Status      string            `json:"status"`
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"alerts"`
	}
	if err := json.NewDecoder(request.Body).Decode(&message); err != nil {
		log.Print(err)
		return
	}
	for _, a := range message.Alerts {
		log.Printf("%s: %s %s\n  %s\n  %s", message.Receiver, a.Status, a.Labels["alertname"], a.Annotations["summary"], a.Annotations["runbook_url"])
	}
}

// client sends requests one after the other.
type client struct {
	url     string
	pooled  bool
	leaking *http.Client
}

func (c client) run(ctx context.Context, interval, leakInterval time.Duration) error {
	requests, leaks, report := time.NewTicker(interval), time.NewTicker(leakInterval), time.NewTicker(10*time.Second)
	shared := &http.Client{Timeout: 5 * time.Second}
	sent, failed := 0, 0
	var last error
	count := func(err error) {
		sent++
		if err != nil {
			failed, last = failed+1, err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-requests.C:
			if c.pooled {
				count(c.get(ctx, shared))
			} else {
				count(c.getAlone(ctx))
			}
		case <-leaks.C:
			if !c.pooled {
				count(c.getAndForget(ctx))
			}
		case <-report.C:
			if failed == 0 {
				log.Printf("%d requests", sent)
			} else {
				log.Printf("%d requests, %d failed, the last with: %v", sent, failed, last)
			}
			sent, failed = 0, 0
		}
	}
}

// getAlone has the first bug: a connection for each request. The side that closes
// first keeps the TIME_WAIT, and the local port with it, for a minute.
func (c client) getAlone(ctx context.Context) error {
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	return c.get(ctx, &http.Client{Transport: transport, Timeout: 5 * time.Second})
}

// getAndForget has the second bug: nobody reads or closes the body, so that the
// connection is never closed either.
func (c client) getAndForget(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, http.NoBody)
	if err != nil {
		return err
	}
	_, err = c.leaking.Do(request) //nolint:bodyclose // that is the bug
	return err
}

func (c client) get(ctx context.Context, with *http.Client) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := with.Do(request)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return errors.Join(err, response.Body.Close())
}
