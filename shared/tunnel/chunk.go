package tunnel

import "sync"

// headroom is what a chunk keeps free before its bytes, so that the frame's
// and the websocket's headers can be put in front without moving them.
const headroom = 32

// The sizes of chunks, headroom included.
const (
	smallChunk  = 2 << 10
	mediumChunk = 16 << 10
	largeChunk  = 64 << 10
	maxChunk    = largeChunk - headroom
)

// chunk is a pooled buffer in a queue. buf[off:end] are its bytes; it grows at
// end and is eaten at off.
type chunk struct {
	buf      []byte
	off, end int
	next     *chunk
}

var chunkPools = [3]sync.Pool{
	{New: func() any { return &chunk{buf: make([]byte, smallChunk)} }},
	{New: func() any { return &chunk{buf: make([]byte, mediumChunk)} }},
	{New: func() any { return &chunk{buf: make([]byte, largeChunk)} }},
}

// newChunk returns an empty chunk with room for n bytes, at most maxChunk.
func newChunk(n int) *chunk {
	i := 2
	switch {
	case n <= smallChunk-headroom:
		i = 0
	case n <= mediumChunk-headroom:
		i = 1
	}
	c := chunkPools[i].Get().(*chunk)
	c.off, c.end, c.next = headroom, headroom, nil
	return c
}

func (c *chunk) free() {
	c.next = nil
	switch len(c.buf) {
	case smallChunk:
		chunkPools[0].Put(c)
	case mediumChunk:
		chunkPools[1].Put(c)
	case largeChunk:
		chunkPools[2].Put(c)
	}
}

func (c *chunk) bytes() []byte { return c.buf[c.off:c.end] }
func (c *chunk) len() int      { return c.end - c.off }

// room is what may still be appended.
func (c *chunk) room() []byte { return c.buf[c.end:] }

// fit returns a chunk with the same bytes in the smallest buffer that holds
// them, so that a queue of short reads does not pin large buffers.
func (c *chunk) fit() *chunk {
	n := c.len()
	if n > mediumChunk-headroom || len(c.buf) <= smallChunk || (n > smallChunk-headroom && len(c.buf) <= mediumChunk) {
		return c
	}
	d := newChunk(n)
	d.end += copy(d.room(), c.bytes())
	c.free()
	return d
}

// chunkQueue is a FIFO of bytes in chunks. Its zero value is empty.
type chunkQueue struct {
	head, tail *chunk
	bytes      int
}

// push appends c and takes it over.
func (q *chunkQueue) push(c *chunk) {
	q.bytes += c.len()
	if q.tail == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
}

// appendSmall copies b into the tail if it fits there, so that many short
// writes share a buffer.
func (q *chunkQueue) appendSmall(b []byte) bool {
	if q.tail == nil || len(q.tail.room()) < len(b) {
		return false
	}
	q.tail.end += copy(q.tail.room(), b)
	q.bytes += len(b)
	return true
}

// pop removes the first chunk, nil if there is none.
func (q *chunkQueue) pop() *chunk {
	c := q.head
	if c == nil {
		return nil
	}
	q.head = c.next
	if q.head == nil {
		q.tail = nil
	}
	c.next = nil
	q.bytes -= c.len()
	return c
}

// read moves up to len(p) bytes out of the queue.
func (q *chunkQueue) read(p []byte) int {
	n := 0
	for n < len(p) && q.head != nil {
		c := q.head
		m := copy(p[n:], c.bytes())
		n += m
		c.off += m
		q.bytes -= m
		if c.len() == 0 {
			q.head = c.next
			if q.head == nil {
				q.tail = nil
			}
			c.free()
		}
	}
	return n
}

// drop empties the queue and returns how many bytes were in it.
func (q *chunkQueue) drop() int {
	n := q.bytes
	for c := q.pop(); c != nil; c = q.pop() {
		c.free()
	}
	return n
}
