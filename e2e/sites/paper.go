package sites

import (
	"bytes"
	"fmt"
	"image/color"
	"net/http"
)

// PaperColor fills the one sheet of /paper.pdf.
var PaperColor = color.RGBA{0xd6, 0x33, 0x84, 0xff}

// paper answers with a PDF (ISO 32000-1) of one sheet in one colour: what
// browsers show in a viewer of their own.
func (s *Site) paper(w http.ResponseWriter, r *http.Request) {
	part := func(v uint8) float64 { return float64(v) / 255 }
	draw := fmt.Sprintf("%.4f %.4f %.4f rg 0 0 800 600 re f", part(PaperColor.R), part(PaperColor.G), part(PaperColor.B))
	var b bytes.Buffer
	var at []int
	b.WriteString("%PDF-1.4\n")
	for i, object := range []string{
		"<</Type/Catalog/Pages 2 0 R>>",
		"<</Type/Pages/Kids[3 0 R]/Count 1>>",
		"<</Type/Page/Parent 2 0 R/MediaBox[0 0 800 600]/Resources<<>>/Contents 4 0 R>>",
		fmt.Sprintf("<</Length %d>>stream\n%s\nendstream", len(draw), draw),
	} {
		at = append(at, b.Len())
		fmt.Fprintf(&b, "%d 0 obj%s\nendobj\n", i+1, object)
	}
	table := b.Len()
	fmt.Fprintf(&b, "xref\n0 %d\n0000000000 65535 f \n", len(at)+1)
	for _, n := range at {
		fmt.Fprintf(&b, "%010d 00000 n \n", n)
	}
	fmt.Fprintf(&b, "trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n", len(at)+1, table)
	w.Header().Set("Content-Type", "application/pdf")
	_, _ = w.Write(b.Bytes()) // a browser that is gone
}
