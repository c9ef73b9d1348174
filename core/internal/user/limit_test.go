package user

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func testLimits() limits { return currentLimits(nil) }

// spend makes n failures.
func spend(t *testing.T, l *limiter, name string, from netip.Addr, n int) {
	t.Helper()
	for i := range n {
		done, err := l.begin(t.Context(), testLimits(), name, from)
		if err != nil {
			t.Fatalf("failure %d of %s from %s: %v", i+1, name, from, err)
		}
		done(true)
	}
}

func TestSubnetLimit(t *testing.T) {
	c := newClock()
	l := newLimiter(c.Now)
	from := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }
	for i := range 60 {
		spend(t, l, fmt.Sprintf("user%d", i), from(i), 1)
	}
	if _, err := l.begin(t.Context(), testLimits(), "another", from(200)); err == nil {
		t.Error("the 61st failure of a /24 was admitted")
	}
	if _, err := l.begin(t.Context(), testLimits(), "another", office); err != nil {
		t.Errorf("another subnet: %v", err)
	}
	c.Add(3 * time.Second)
	spend(t, l, "another", from(200), 1)
	six := netip.MustParseAddr("2001:db8:1:200::1")
	if subnetOf(six) != subnetOf(netip.MustParseAddr("2001:db8:1:2ff::9")) || subnetOf(six) == subnetOf(netip.MustParseAddr("2001:db8:1:300::1")) {
		t.Error("IPv6 subnets are not /56")
	}
}

func TestRefusedAttemptsUseNothingUp(t *testing.T) {
	c := newClock()
	l := newLimiter(c.Now)
	spend(t, l, "jane", office, 5)
	for range 1000 {
		if _, err := l.begin(t.Context(), testLimits(), "jane", office); err == nil {
			t.Fatal("admitted")
		}
	}
	spend(t, l, "bob", office, 5)
	c.Add(time.Minute)
	spend(t, l, "jane", office, 1)
}

// TestAttemptsUnderWayCount: ten thousand guesses sent at once are still only
// five.
func TestAttemptsUnderWayCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(time.Now)
		var mu sync.Mutex
		admitted, refused := 0, 0
		var wg sync.WaitGroup
		for range 10_000 {
			wg.Go(func() {
				done, err := l.begin(t.Context(), testLimits(), "jane", office)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					refused++
					return
				}
				admitted++
				wg.Go(func() {
					<-time.After(time.Millisecond) // the hash, on the bubble's clock
					done(true)
				})
			})
		}
		wg.Wait()
		if admitted != 5 || refused != 9995 {
			t.Errorf("%d admitted, %d refused; want 5 and 9995", admitted, refused)
		}
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(time.Now)
		for range 5 {
			if _, err := l.begin(t.Context(), testLimits(), "jane", office); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.begin(ctx, testLimits(), "jane", office); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("begin while all are under way: %v", err)
		}
	})
}

func TestLimiterForgets(t *testing.T) {
	c := newClock()
	l := newLimiter(c.Now)
	l.most = 2000
	for i := range l.most * 2 {
		name, from := fmt.Sprintf("u%d", i), netip.AddrFrom4([4]byte{byte(i >> 16), byte(i >> 8), byte(i), 1})
		done, err := l.begin(t.Context(), testLimits(), name, from)
		if err != nil {
			t.Fatal(err)
		}
		done(true)
	}
	if n := len(l.buckets); n > l.most {
		t.Errorf("%d buckets, bound is %d", n, l.most)
	}
	c.Add(24 * time.Hour)
	l.prune(testLimits())
	if n := len(l.buckets); n != 0 {
		t.Errorf("%d buckets a day later, want 0", n)
	}
	// A success leaves nothing behind.
	done, err := l.begin(t.Context(), testLimits(), "jane", office)
	if err != nil {
		t.Fatal(err)
	}
	done(false)
	if n := len(l.buckets); n != 0 {
		t.Errorf("%d buckets after a success, want 0", n)
	}
}
