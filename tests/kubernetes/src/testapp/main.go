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
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const usage = `usage: testapp COMMAND
  serve [-http :8080] [-tcp :9000]    answers over HTTP who was asked by whom; echoes bytes on the other port
  get [-n 1] [-timeout 20s] [-H k:v] [-i] URL   one new connection per request; -i shows headers; exits 1 when one fails
  ask [-rate 200] [-connections 16] URL   requests at a steady rate over kept connections, for ever; prints each that is not
                                      answered 2xx, and a line of totals every second, with who answered
  lookup NAME...                      addresses by DNS
  tcp ADDRESS TEXT                    says one line to an echoing server, prints the answer
  hold ADDRESS                        one connection, a line every 100 ms; ends with 1 when it breaks
  load [-every 20ms] ADDRESS...       a new connection and one exchanged line at a time to each, for ever; prints each failure
                                      and change, and a line of totals every second
  bulk ADDRESS MEGABYTES              bytes there and back through an echoing server, compared
  sleep SECONDS | touch FILE | rm FILE | exit CODE`

// patience is how long anything may take that is to succeed: a machine that others use too may stand still for seconds.
const patience = 20 * time.Second

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
	case "ask":
		ask(args)
	case "lookup":
		for _, name := range args {
			found, err := net.DefaultResolver.LookupHost(context.Background(), name)
			must(err)
			fmt.Println(name, strings.Join(found, " "))
		}
	case "tcp":
		c, err := net.DialTimeout("tcp", args[0], patience)
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
	linger := flags.Duration("linger", 0, "goes on serving for so long after SIGTERM")
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
			"local": r.Context().Value(http.LocalAddrContextKey).(net.Addr).String(), "path": r.URL.Path, "body": string(body),
			"headers": r.Header})
	})
	log.Print("serving on ", *addr, " and ", *tcp)
	server := &http.Server{Addr: *addr}
	go func() { must(server.ListenAndServe()) }()
	// As applications do that drain: still there while everybody learns that it goes, then open requests end.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	<-ended
	time.Sleep(*linger)
	must(server.Shutdown(context.Background()))
}

func get(args []string) {
	flags := flag.NewFlagSet("get", flag.ExitOnError)
	n := flags.Int("n", 1, "")
	timeout := flags.Duration("timeout", patience, "")
	shown := flags.Bool("i", false, "shows the answer's headers")
	header := http.Header{}
	flags.Func("H", "a header, name:value", func(text string) error {
		name, value, _ := strings.Cut(text, ":")
		header.Add(name, strings.TrimSpace(value))
		return nil
	})
	flags.Parse(args)
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	bad := 0
	for range *n {
		request, err := http.NewRequest("GET", flags.Arg(0), nil)
		must(err)
		request.Header = header.Clone()
		if host := header.Get("Host"); host != "" {
			request.Host = host
		}
		r, err := client.Do(request)
		if err != nil {
			fmt.Println(err)
			bad++
			continue
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		fmt.Println(r.StatusCode, strings.TrimSpace(string(body)))
		if *shown {
			r.Header.Write(os.Stdout)
		}
		if err != nil || r.StatusCode >= 400 {
			bad++
		}
	}
	if bad > 0 {
		os.Exit(1)
	}
}

// ask does not wait for answers before it asks again: each of its connections asks at its own steady times.
func ask(args []string) {
	flags := flag.NewFlagSet("ask", flag.ExitOnError)
	rate := flags.Int("rate", 200, "requests a second")
	connections := flags.Int("connections", 16, "")
	flags.Parse(args)
	var total, failed atomic.Int64
	var mutex sync.Mutex
	by := map[string]int{}
	pause := time.Second * time.Duration(*connections) / time.Duration(*rate)
	for i := range *connections {
		client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxConnsPerHost: 1}}
		go func() {
			time.Sleep(pause * time.Duration(i) / time.Duration(*connections))
			for range time.Tick(pause) {
				pod, err := answer(client, flags.Arg(0))
				total.Add(1)
				if err != nil {
					failed.Add(1)
					log.Printf("FAILED %v", err)
					continue
				}
				mutex.Lock()
				by[pod]++
				mutex.Unlock()
			}
		}()
	}
	for range time.Tick(time.Second) {
		mutex.Lock()
		log.Printf("TOTAL %d BY %v FAILED %d", total.Load(), by, failed.Load())
		mutex.Unlock()
	}
}

// answer says who answered a request.
func answer(client *http.Client, url string) (string, error) {
	r, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return "", err
	}
	if r.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s: %s", r.Status, body)
	}
	var said struct{ Pod string }
	err = json.Unmarshal(body, &said)
	return said.Pod, err
}

// exchange says one line and wants it back, within patience.
func exchange(c net.Conn, r *bufio.Reader, text string) error {
	c.SetDeadline(time.Now().Add(patience))
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
	c, err := net.DialTimeout("tcp", address, patience)
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
	c, err := net.DialTimeout("tcp", address, patience)
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
	c, err := net.DialTimeout("tcp", args[0], patience)
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
