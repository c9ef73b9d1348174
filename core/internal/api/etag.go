package api

import (
	"strconv"
	"strings"
)

func itoa(n int) string { return strconv.Itoa(n) }

// ETag renders a row version as an entity tag.
func ETag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// CheckMatch compares an If-Match header (RFC 9110 §13.1.1) with the row's
// version: 428 when the header is missing, 412 when it does not match. A weak
// tag matches too: compressing proxies weaken tags, and a row version names
// the same content either way.
func CheckMatch(ifMatch string, version int64) error {
	if strings.TrimSpace(ifMatch) == "" {
		return &Problem{
			Status: 428, Title: "Say which version you are changing.", Code: "precondition_required",
			Detail: "Send If-Match with the ETag you read.",
		}
	}
	want := ETag(version)
	for tag := range strings.SplitSeq(ifMatch, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.TrimPrefix(tag, "W/") == want {
			return nil
		}
	}
	return &Problem{
		Status: 412, Title: "It has changed meanwhile.", Code: "precondition_failed",
		Detail: "Read it again and repeat your change on the new version.",
	}
}
