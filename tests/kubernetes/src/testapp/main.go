// testapp: the scenarios' server and clients in one static binary, independent of the mesh under test.
package main

import (
	"bufio"
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
	"strings"
	"sync/atomic"
	"time"
)

const usage = `usage: testapp COMMAND
  serve [-http :8080] [-tcp :9000]    answers over HTTP who was asked by whom; echoes bytes on the other port
  get [-n 1] [-timeout 5s] URL        one new connection per request; exits 1 when one fails
  lookup NAME...                      addresses by DNS
  tcp ADDRESS TEXT                    says one line to an echoing server, prints the answer
  hold ADDRESS                        one connection, a line every 100 ms; ends with 1 when it breaks
  load [-every 20ms] ADDRESS...       a new connection and one exchanged line at a time to each, for ever; prints each failure
                                      and change, and a line of totals every second
  bulk ADDRESS MEGABYTES              bytes there and back through an echoing server, compared
  sleep SECONDS | touch FILE | rm FILE | exit CODE`

func main() {
	log.SetFlags(log.LUTC | log.Ldate | log.Lmicroseconds)
	if len(os.Args) < 2 {
		log.Fatal(usage)
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "serve":
		serve(args)
	case "get":
		get(args)
	case "lookup":
		for _, name := range args {
			found, err := net.DefaultResolver.LookupHost(context.Background(), name)
			must(err)
			fmt.Println(name, strings.Join(found, " "))
		}
	case "tcp":
		c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
		must(err)
		must(exchange(c, bufio.NewReader(c), args[1]))
		fmt.Println("said", args[1], "to", c.RemoteAddr())
	case "hold":
		hold(args[0])
	case "load":
		load(args)
	case "bulk":
		bulk(args)
	case "sleep":
		d, err := time.ParseDuration(args[0] + "s")
		must(err)
		time.Sleep(d)
	case "touch":
		must(os.WriteFile(args[0], nil, 0o644))
	case "rm":
		must(os.Remove(args[0]))
	case "test":
		_, err := os.Stat(args[0])
		must(err)
	case "exit":
		code := 0
		fmt.Sscan(args[0], &code)
		os.Exit(code)
	default:
		log.Fatal(usage)
	}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func serve(args []string) {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	addr := flags.String("http", ":8080", "")
	tcp := flags.String("tcp", ":9000", "")
	flags.Parse(args)
	listener, err := net.Listen("tcp", *tcp)
	must(err)
	go func() {
		for {
			c, err := listener.Accept()
			must(err)
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	http.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat("/tmp/unready"); err == nil {
			http.Error(w, "unready", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok", r.RemoteAddr)
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		json.NewEncoder(w).Encode(map[string]any{"pod": host, "node": os.Getenv("NODE_NAME"), "remote": r.RemoteAddr,
			"local": r.Context().Value(http.LocalAddrContextKey).(net.Addr).String(), "path": r.URL.Path, "body": string(body)})
	})
	log.Print("serving on ", *addr, " and ", *tcp)
	must(http.ListenAndServe(*addr, nil))
}

func get(args []string) {
	flags := flag.NewFlagSet("get", flag.ExitOnError)
	n := flags.Int("n", 1, "")
	timeout := flags.Duration("timeout", 5*time.Second, "")
	flags.Parse(args)
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	bad := 0
	for range *n {
		r, err := client.Get(flags.Arg(0))
		if err != nil {
			fmt.Println(err)
			bad++
			continue
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		fmt.Println(r.StatusCode, strings.TrimSpace(string(body)))
		if err != nil || r.StatusCode >= 400 {
			bad++
		}
	}
	if bad > 0 {
		os.Exit(1)
	}
}

// exchange says one line and wants it back, within 5 seconds.
func exchange(c net.Conn, r *bufio.Reader, text string) error {
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintln(c, text); err != nil {
		return err
	}
	back, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	if back != text+"\n" {
		return fmt.Errorf("said %q, heard %q", text, back)
	}
	return nil
}

func hold(address string) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	must(err)
	r := bufio.NewReader(c)
	log.Print("open from ", c.LocalAddr())
	for i := 1; ; i++ {
		if err := exchange(c, r, fmt.Sprint("line ", i)); err != nil {
			log.Fatal("BROKEN after ", i-1, " lines: ", err)
		}
		if i%10 == 0 {
			log.Print("held ", i)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func once(address string) error {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c, bufio.NewReader(c), "hello")
}

func load(args []string) {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	every := flags.Duration("every", 20*time.Millisecond, "pause after each connection")
	flags.Parse(args)
	var total, failed atomic.Int64
	for _, address := range flags.Args() {
		go func() {
			state := "none yet"
			for {
				err := once(address)
				total.Add(1)
				now := "open"
				if err != nil {
					failed.Add(1)
					now = "refused"
					log.Printf("FAILED %s: %v", address, err)
				}
				if now != state {
					log.Printf("CHANGE %s %s at %d", address, now, time.Now().UnixMilli())
					state = now
				}
				time.Sleep(*every)
			}
		}()
	}
	for range time.Tick(time.Second) {
		log.Printf("TOTAL %d FAILED %d", total.Load(), failed.Load())
	}
}

func bulk(args []string) {
	var megabytes int
	fmt.Sscan(args[1], &megabytes)
	c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
	must(err)
	c.SetDeadline(time.Now().Add(2 * time.Minute))
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	sent := make(chan error, 1)
	go func() {
		for range megabytes {
			if _, err := c.Write(block); err != nil {
				sent <- err
				return
			}
		}
		sent <- c.(*net.TCPConn).CloseWrite()
	}()
	got, at := make([]byte, 1<<16), 0
	for {
		n, err := c.Read(got)
		for _, b := range got[:n] {
			if b != block[at%len(block)] {
				log.Fatal("byte ", at, " differs")
			}
			at++
		}
		if errors.Is(err, io.EOF) {
			break
		}
		must(err)
	}
	must(<-sent)
	if at != megabytes<<20 {
		log.Fatal("got ", at, " bytes")
	}
	fmt.Println("compared", at, "bytes")
}
