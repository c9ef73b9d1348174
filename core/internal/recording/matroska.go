package recording

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// rawVideo writes uncompressed pictures with their times, as Matroska (RFC
// 9559), for ffmpeg to read from a pipe: raw pictures alone would have to come
// at a constant rate, also when nothing changes for an hour.
type rawVideo struct {
	w     io.Writer
	track int
}

// The elements used, by their EBML IDs (RFC 9559 §5).
const (
	idEBML       = 0x1A45DFA3
	idDocType    = 0x4282
	idSegment    = 0x18538067
	idInfo       = 0x1549A966
	idScale      = 0x2AD7B1
	idMuxingApp  = 0x4D80
	idWritingApp = 0x5741
	idTracks     = 0x1654AE6B
	idTrack      = 0xAE
	idTrackNo    = 0xD7
	idTrackUID   = 0x73C5
	idTrackType  = 0x83
	idLacing     = 0x9C
	idDuration   = 0x23E383
	idCodec      = 0x86
	idVideo      = 0xE0
	idWidth      = 0xB0
	idHeight     = 0xBA
	idColours    = 0x2EB524
	idCluster    = 0x1F43B675
	idTimestamp  = 0xE7
	idBlock      = 0xA3
)

// element appends an element's ID and length.
func element(b []byte, id uint32, size int) []byte {
	for shift := 24; shift >= 0; shift -= 8 {
		if id>>shift != 0 {
			b = append(b, byte(id>>shift))
		}
	}
	return binary.BigEndian.AppendUint64(b, 1<<56|uint64(size)) // a length of eight bytes
}

func data(b []byte, id uint32, content []byte) []byte {
	return append(element(b, id, len(content)), content...)
}

func number(b []byte, id uint32, v int) []byte {
	return data(b, id, binary.BigEndian.AppendUint64(nil, uint64(v)))
}

// newRawVideo writes the head of a video of RGBA pictures.
func newRawVideo(w io.Writer, width, height int) (*rawVideo, error) {
	b := data(nil, idEBML, data(nil, idDocType, []byte("matroska")))
	b = append(b, 0x18, 0x53, 0x80, 0x67, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // a segment of unknown length
	info := number(nil, idScale, int(time.Millisecond))
	info = data(info, idMuxingApp, []byte("caponier"))
	b = data(b, idInfo, data(info, idWritingApp, []byte("caponier")))
	video := number(number(nil, idWidth, width), idHeight, height)
	video = data(video, idColours, []byte("RGBA"))
	track := number(number(number(number(nil, idTrackNo, 1), idTrackUID, 1), idTrackType, 1), idLacing, 0)
	track = number(track, idDuration, int(exportTick)) // of a picture after which nothing comes
	track = data(data(track, idCodec, []byte("V_UNCOMPRESSED")), idVideo, video)
	b = data(b, idTracks, data(nil, idTrack, track))
	if _, err := w.Write(b); err != nil {
		return nil, fmt.Errorf("write raw video: %w", err)
	}
	return &rawVideo{w: w, track: 1}, nil
}

// picture writes a picture that is shown from at on.
func (v *rawVideo) picture(at time.Duration, rgba []byte) error {
	const blockHead = 4 // track, time in the cluster, flags
	stamp := number(nil, idTimestamp, int(at.Milliseconds()))
	block := element(nil, idBlock, blockHead+len(rgba))
	head := element(nil, idCluster, len(stamp)+len(block)+blockHead+len(rgba))
	head = append(append(append(head, stamp...), block...), 0x80|byte(v.track), 0, 0, 0x80)
	if _, err := v.w.Write(head); err != nil {
		return fmt.Errorf("write raw video: %w", err)
	}
	if _, err := v.w.Write(rgba); err != nil {
		return fmt.Errorf("write raw video: %w", err)
	}
	return nil
}
