package ruleset

import "math/bits"

// Block is a range of marks whose size is a power of two and whose base is a
// multiple of it, so that (mark & ^(Size-1)) == Base finds all of them at once.
type Block struct{ Base, Size uint32 }

// Mask is what marks of the block have in common.
func (b Block) Mask() uint32 { return ^(b.Size - 1) }

// Holds reports whether a mark is of the block.
func (b Block) Holds(mark uint32) bool { return mark&b.Mask() == b.Base }

func (b Block) meets(o Block) bool {
	big, small := b, o
	if small.Size > big.Size {
		big, small = small, big
	}
	return big.Holds(small.Base)
}

// reserveStep is how many marks are reserved in the kernel at once: a restarted
// router goes on behind what was reserved.
const reserveStep = 1 << 16

// marks hands out blocks in order and comes back to a used one only after all
// 2^31 were handed out, and never to one that is still taken.
type marks struct {
	next     uint32 // without MarkBit
	reserved uint32 // without MarkBit; marks below may be handed out
	wrapped  bool
}

// take returns a block of at least n marks that no taken one meets. Where it
// changes reserved, the kernel has to be told with the block.
func (m *marks) take(n int, taken func(Block) bool) Block {
	size := blockSize(n)
	for {
		base := (m.next + size - 1) &^ (size - 1)
		if base+size >= MarkBit { // the last one stays unused: reserved must fit
			m.next, m.reserved, m.wrapped = 0, 0, true
			continue
		}
		m.next = base + size
		b := Block{Base: base | MarkBit, Size: size}
		if m.wrapped && taken(b) {
			continue
		}
		for m.next > m.reserved {
			m.reserved = min(m.reserved+reserveStep, MarkBit-1)
		}
		return b
	}
}

// blockSize is the size of the block for n > 0 marks.
func blockSize(n int) uint32 { return 1 << bits.Len32(uint32(n-1)) }
