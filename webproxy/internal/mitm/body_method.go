package mitm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"caponier/shared/webrule"
)

// Applications take a request's method from a field of its body, too. What a
// body of at most maxMethodBody says counts before the request leaves. Of a
// longer one the rest is looked at as it passes, and its end is kept back until
// it was: a method that may not be breaks the request off, and no application
// gets a whole one.
const (
	// maxMethodBody is how much of a body is read ahead, in bytes.
	maxMethodBody = 64 << 10
	// lateBuffer is how much of a longer one is kept back, in bytes.
	lateBuffer = 32 << 10
)

// errLateMethod is the error of a body that names a method at its end that may
// not be.
var errLateMethod = errors.New("the body names a method that may not be")

// readMethods finds out which methods the body names, as far as it is read ahead.
func (x *exchange) readMethods() error {
	if x.in.Body == nil || x.in.Body == http.NoBody || x.in.ContentLength == 0 {
		return nil
	}
	scan, unclear := newMethodScan(x.in.Header)
	if scan == nil || unclear {
		x.unclear = unclear
		return nil
	}
	head, err := io.ReadAll(io.LimitReader(x.in.Body, maxMethodBody+1))
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	scan.write(head)
	if len(head) <= maxMethodBody {
		scan.finish()
		x.in.Body = &rest{bytes.NewReader(head), x.in.Body}
	} else {
		late := &lateMethods{src: x.in.Body, scan: scan, known: len(scan.methods), unclear: scan.unclear, back: head, may: x.mayLate}
		x.in.Body = &rest{late, x.in.Body}
	}
	x.bodyMethods, x.unclear = slices.Clone(scan.methods), scan.unclear
	return nil
}

// lateMethods is a body that is looked at while it passes.
type lateMethods struct {
	src     io.Reader
	scan    *methodScan
	known   int  // methods that were decided on
	unclear bool // and whether it was
	may     func(method string, unclear bool) bool

	ready, back []byte // back follows when it is known what comes after it
	spare       []byte // the buffer that is neither
	err         error
}

// Read implements io.Reader.
func (l *lateMethods) Read(p []byte) (int, error) {
	for len(l.ready) == 0 {
		if l.err != nil {
			return 0, l.err
		}
		next := l.spare
		if len(next) == 0 {
			next = make([]byte, lateBuffer)
		}
		n, err := l.src.Read(next)
		l.scan.write(next[:n])
		if err == io.EOF {
			l.scan.finish()
		}
		fine := !l.scan.unclear || l.unclear || l.may("", true)
		for _, m := range l.scan.methods[l.known:] {
			fine = fine && l.may(m, false)
		}
		l.known, l.unclear = len(l.scan.methods), l.scan.unclear
		switch {
		case !fine:
			l.err = errLateMethod
			return 0, l.err
		case err == io.EOF:
			l.ready, l.back, l.err = slices.Concat(l.back, next[:n]), nil, err
		case err != nil:
			l.err = err // the end stays here
			return 0, l.err
		case n > 0:
			// What was ready has been read: its buffer is the next one.
			l.ready, l.back, l.spare = l.back, next[:n], l.back[:cap(l.back)]
		}
	}
	n := copy(p, l.ready)
	l.ready = l.ready[n:]
	return n, nil
}

// mayLate decides on a method that was found when the request was under way, or
// while it is read to be held. Nobody can be asked about it any more then.
func (x *exchange) mayLate(method string, unclear bool) bool {
	late := webrule.Meant{Request: x.what, Any: unclear}
	if !unclear {
		late.Method = method
		x.live.Also([]string{method}, false)
	} else {
		x.live.Also(nil, true)
	}
	v := x.ses.Revision().Policy.DecideMeant(late)
	if v.Allowed() {
		return true
	}
	if v.Held() && x.keeping { // who decides is told of it
		x.unclear = x.unclear || unclear
		if !unclear {
			x.bodyMethods = append(x.bodyMethods, method)
		}
		return true
	}
	x.late.Store(&v)
	return false
}

// asWhat are the methods that an application may take the request to have
// besides its own, sorted.
func (x *exchange) asWhat() []string {
	methods := append(overrides(x.in), x.bodyMethods...)
	slices.Sort(methods)
	return slices.Compact(methods)
}

// ruleMethod is asWhat for those who decide; nothing if there is none.
func (x *exchange) ruleMethod() string {
	text := strings.Join(x.asWhat(), " or ")
	if x.unclear {
		text = "any method"
	}
	if len(text) > maxMethod {
		text = "others"
	}
	return text
}
