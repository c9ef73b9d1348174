package wire

// Web sessions (DESIGN §6). Core pairs a carrier, which runs the browser, with
// a webproxy, which lets it out; both know the session by the ID of its
// connection. Control is HTTP over the tunnel (see shared/control).
//
// Core asks the carrier, and the webproxy alike under its own prefix:
//
//	PUT    PathCarrierSessions/{id}   CarrierSession  -> CarrierAck   idempotent; a higher revision replaces
//	PUT    PathWebProxySessions/{id}  WebProxySession -> WebAck       the same: rules change without restart
//	DELETE …/{id}                                     -> WebAck       returns when nothing of it is left
//	GET    …                          nothing         -> WebStates    what the node has, for reconciling
//
// The edge asks core:
//
//	GET  PathWebAuthority   nothing          -> WebAuthority      carriers: whom browsers must trust
//	POST PathWebAuthority   WebAuthorityAsk  -> WebAuthority      webproxies: an issuing certificate
//	POST PathWebCredential  WebCredentialAsk -> WebCredentialSealed  webproxies: one use of a stored credential
//	POST PathWebApproval    WebApprovalAsk   -> WebApproval       webproxies: a request waits for a second person
//	POST PathWebRecords?session=ID           -> WebRecordsAck     body: AppendWebRecord, gzip permitted
//	POST PathWebEnded       WebEnded         -> nothing           a session ended by itself
//
// Streams, all of kind StreamDial and with the session as Connection:
// core opens ScreenControl, ScreenWatch, SessionFiles and SessionSound to the carrier,
// SessionProxy to the webproxy; the
// webproxy opens host:port to core, which reaches it through the target's site.
const (
	PathCarrierSessions  = "/carrier/v1/sessions"
	PathWebProxySessions = "/webproxy/v1/sessions"

	PathWebAuthority  = "/web/v1/authority"
	PathWebCredential = "/web/v1/credential"
	PathWebApproval   = "/web/v1/approval"
	PathWebRecords    = "/web/v1/records"
	PathWebEnded      = "/web/v1/ended"
)

// Destinations of streams from core to a carrier. The first two carry RFB
// (RFC 6143) with the carrier as server and no authentication: core has
// decided. SessionFiles carries HTTP/1.1 requests one after another:
//
//	GET    /files              list, WebFiles
//	GET    /files/{path}       one file; of a folder a tar
//	PUT    /files/{path}       one file, into the folder the browser's file dialog opens in
//	PUT    /files/?tar         a tar of files and folders (POSIX.1-2001)
//	DELETE /files/{path}
const (
	ScreenControl = "screen/control"
	ScreenWatch   = "screen/watch"
	SessionFiles  = "files"
	// SessionSound carries what a session with sound plays: SoundBlock after
	// SoundBlock, none for silence. Who listens says one byte, whatever it is,
	// for each block; the carrier leaves out what SoundAhead blocks are ahead of.
	SessionSound = "sound"
	// SessionProxy is opened to a webproxy: the bytes of an explicit HTTP
	// proxy, for a session of API clients. Each request names the session and
	// its key (Proxy-Authorization: Basic).
	SessionProxy = "proxy"
)

// Limits of web sessions, in bytes.
const (
	MaxWebBody    = 1 << 20  // of a control message
	MaxWebRecord  = 16 << 20 // of one record's payload: a key frame of a large screen
	MaxWebRecords = 24 << 20 // of one batch, after decompression
)

// Sound of web sessions: samples of 16 bits, little endian, signed, of two
// channels in turn, SoundRate a second of each.
const (
	SoundRate  = 48000                  // Hz
	SoundBlock = SoundRate / 50 * 2 * 2 // bytes: 20 ms
	SoundAhead = 25                     // blocks: half a second on the way
)

// Engines of browsers.
const (
	Firefox  = "firefox" // what there is without saying
	Chromium = "chromium"
)

// CarrierSession is a browser session as a carrier runs it.
type CarrierSession struct {
	ID       string `json:"id"`
	Revision uint64 `json:"revision"`
	User     string `json:"user"` // name, for the watermark and logs
	Target   string `json:"target"`
	// StartURL is where the browser goes.
	StartURL string `json:"start_url"`
	Width    int    `json:"width"` // pixels, at the start; the owner's viewer may resize
	Height   int    `json:"height"`
	TimeZone string `json:"time_zone,omitempty"` // IANA name
	// Engine is the browser to run; empty: Firefox. Later revisions do not change it.
	Engine string `json:"engine,omitempty"`
	// Proxy is the only way out.
	Proxy  WebProxyAddress `json:"proxy"`
	Policy BrowserPolicy   `json:"policy"`
	// LeaseS is how many seconds the session goes on without a tunnel to core.
	LeaseS int64 `json:"lease_s"`
	// Recorded: the session ends when its records cannot be delivered.
	Recorded bool `json:"recorded"`
	// Locked: input from the viewer is dropped; LockText is shown.
	Locked   bool   `json:"locked,omitempty"`
	LockText string `json:"lock_text,omitempty"`
}

// WebProxyAddress is how a carrier reaches the session's webproxy: TLS 1.3 to
// Address, both sides with the certificates of their node identity, the
// webproxy's of node NodeID. Inside, one line opens each connection:
// "CAPONIER/1 <session id> <key>\r\n", then the bytes of an explicit HTTP proxy.
type WebProxyAddress struct {
	NodeID  string `json:"node_id"`
	Address string `json:"address"` // host:port
	// Key is random per session and proves that the connection is that
	// session's; 43 characters of base64url.
	Key string `json:"key"`
}

// BrowserPolicy is what the person in front of the browser may do.
type BrowserPolicy struct {
	// Mode is kiosk (no bars, the default), bar (address and navigation bar) or
	// auto (the bar while the pointer is at the upper edge).
	Mode string `json:"mode,omitempty"`
	// DevTools permits the browser's developer tools.
	DevTools bool `json:"devtools,omitempty"`
	// Sound: what pages play can be heard (see SessionSound).
	Sound bool `json:"sound,omitempty"`
	// ClipboardIn and ClipboardOut are the most bytes per paste to and copy
	// from the browser; 0 forbids.
	ClipboardIn  int64 `json:"clipboard_in"`
	ClipboardOut int64 `json:"clipboard_out"`
	// ClipboardText: texts are recorded; else only their size and hash.
	ClipboardText bool `json:"clipboard_text,omitempty"`
	// UploadMax and DownloadMax are the most bytes per file; 0 forbids.
	UploadMax   int64 `json:"upload_max"`
	DownloadMax int64 `json:"download_max"`
	// IdleS and MaxS end the session: seconds without input, seconds in all;
	// 0: no limit. NoticeS is how long before that it is told on the screen.
	IdleS   int64 `json:"idle_s"`
	MaxS    int64 `json:"max_s"`
	NoticeS int64 `json:"notice_s"`
	// Watermark is drawn over the picture, a line each.
	Watermark []string `json:"watermark,omitempty"`
	// ScanURL is an ICAP service (RFC 3507) that sees every file; empty: none.
	ScanURL string `json:"scan_url,omitempty"`
}

// CarrierAck answers a CarrierSession.
type CarrierAck struct {
	Error    *Error `json:"error,omitempty"` // CodeLimit: no room, try another carrier
	Revision uint64 `json:"revision"`
	Warm     bool   `json:"warm"` // a parked browser was claimed
}

// WebProxySession is a session as a webproxy enforces it. Rules, recipe, TLS
// policy and anchors are those of webrule, as JSON, so that a newer core's
// additions pass through an older relay unread; the webproxy refuses what it
// does not know.
type WebProxySession struct {
	ID       string `json:"id"`
	Revision uint64 `json:"revision"`
	User     string `json:"user"`
	Target   string `json:"target"`
	StartURL string `json:"start_url"`
	// Carrier is the node that the session's browser runs on; CarrierRoots are
	// in Roots. Empty: the session is for API clients on the cleartext port.
	Carrier string `json:"carrier"`
	Key     string `json:"key"` // see WebProxyAddress
	// Site is the target's site: connections go through core. Empty: the
	// webproxy dials by itself.
	Site string `json:"site,omitempty"`
	// Policy is a webrule.Policy.
	Policy []byte `json:"policy"`
	// Account is the login that is injected, empty for none.
	Account string `json:"account,omitempty"`
	LeaseS  int64  `json:"lease_s"`
	// ScanURL is an ICAP service for bodies (RFC 3507); empty: none.
	ScanURL string `json:"scan_url,omitempty"`
	// NoPopups: the browser is told that pages may open no windows.
	NoPopups bool `json:"no_popups,omitempty"`
	// Issuer is the generation of issuing certificates in force (WebAuthority);
	// a webproxy that has another asks for a new one first.
	Issuer string `json:"issuer,omitempty"`
	// Locked: nothing leaves. It is for sessions of API clients; the input of a
	// browser is locked at its carrier.
	Locked bool `json:"locked,omitempty"`
}

// WebAck answers a WebProxySession or an end.
type WebAck struct {
	Error    *Error `json:"error,omitempty"`
	Revision uint64 `json:"revision"`
}

// WebEnded tells core of a session that ended without being asked to. Reason
// is a conn.EndReason: user, idle, max_duration, target, error.
type WebEnded struct {
	Session string `json:"session"`
	Reason  string `json:"reason"`
	Text    string `json:"text"` // for the user
}

// WebStates is what a carrier or webproxy has.
type WebStates struct {
	Sessions []WebState `json:"sessions"`
	// Holds: each session says which requests wait in it. A webproxy's.
	Holds bool `json:"holds,omitempty"`
}

// WebState is one session of a node.
type WebState struct {
	ID       string `json:"id"`
	Revision uint64 `json:"revision"`
	// Ending: it is being cleared away, or core is still to be told why it ended.
	Ending bool `json:"ending,omitempty"`
	// Holds are the requests that wait for approval, or have it and are not sent
	// yet, by WebApprovalAsk.Hold.
	Holds []string `json:"holds,omitempty"`
}

// WebAuthorityAsk asks for a certificate that issues leaves for browsers. CSR
// is a PKCS#10 request (RFC 2986, DER) by an ECDSA P-256 key that never leaves
// the webproxy.
type WebAuthorityAsk struct {
	CSR []byte `json:"csr"`
}

// WebAuthority is the root that browsers trust, and for a webproxy its issuing
// certificate (DER).
type WebAuthority struct {
	Root        []byte `json:"root"`
	Certificate []byte `json:"certificate,omitempty"`
	// Generation names root and constraints of Certificate.
	Generation string `json:"generation,omitempty"`
}

// WebCredentialAsk asks for one use of the session's credential. Core decides
// (the session is live, is this webproxy's, the recipe has the injection) and
// audits the use.
type WebCredentialAsk struct {
	Session   string `json:"session"`
	Injection string `json:"injection"` // ID in the recipe
	// URL is where it goes: origin and path, never a query.
	URL string `json:"url"`
	// SealTo is a public key made for this ask; see WebCredentialKey.
	SealTo []byte `json:"seal_to"`
}

// WebCredentialSealed answers a WebCredentialAsk.
type WebCredentialSealed struct {
	Error  *Error `json:"error,omitempty"`
	Sealed []byte `json:"sealed,omitempty"` // a WebCredential; see WebCredentialKey
}

// WebCredential is what the recipe's injection needs, and no more.
type WebCredential struct {
	// Error is why there is none; it travels outside what is sealed.
	Error    *Error `json:"-"`
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	TOTP     string `json:"totp,omitempty"` // the current code, RFC 6238
	// Certificate and Key are a client certificate, PEM.
	Certificate string `json:"certificate,omitempty"`
	Key         string `json:"key,omitempty"`
}

// String hides the values.
func (WebCredential) String() string { return "credential ***" }

// GoString hides the values.
func (WebCredential) GoString() string { return "credential ***" }

// WebApprovalAsk tells core of a request that waits, and waits with it: core
// answers when it is decided, or "waiting" after WebApprovalPoll. The webproxy
// asks again with the same Hold until it has a decision, over whatever tunnel
// it has then; it tells core with Gone that nobody waits any more.
type WebApprovalAsk struct {
	Session string `json:"session"`
	// Hold names the request in this webproxy's memory: random, up to 64 bytes.
	// An approval is worth one use of what that name stands for, and nothing
	// once the webproxy has forgotten it.
	Hold   string `json:"hold"`
	Method string `json:"method"`
	// RuleMethod is the method that the rule saw, where an application may take
	// another than Method: from a header, the query or the body.
	RuleMethod string `json:"rule_method,omitempty"`
	// URL is as in the session's log: secrets in its query are masked.
	URL         string `json:"url"`
	ContentType string `json:"content_type,omitempty"`
	// Length is of the body in bytes, -1 when it is not known.
	Length int64 `json:"length"`
	// Digest is of method, URL and body (SHA-256, hexadecimal); empty when the
	// body is longer than the webproxy keeps.
	Digest string `json:"digest,omitempty"`
	// Page: the user sees a page of ours meanwhile; else a script waits.
	Page bool `json:"page,omitempty"`
	// Rule is what holds it, in words; Why is the rule's.
	Rule string `json:"rule"`
	Why  string `json:"why,omitempty"`
	Gone bool   `json:"gone,omitempty"`
	// Taken: the webproxy has the approval, and sends the request when the
	// answer says approved again; until then it counts as not sent. Confirms
	// says that it will ask so; to one that does not, an approval is given for
	// sent with the first answer.
	Taken    bool `json:"taken,omitempty"`
	Confirms bool `json:"confirms,omitempty"`
	// Preview shows the body to those who decide, where it can be shown; it is
	// said once, not when core is asked again.
	Preview *WebPreview `json:"preview,omitempty"`
}

// WebPreview is a request's body made readable: secrets in it are masked, and
// in place of a stored credential stands what kind of value it is.
type WebPreview struct {
	// Kind is form, json or multipart: how the body was read.
	Kind string `json:"kind"`
	// Text has no control characters but line feeds; at most MaxWebPreview bytes.
	Text string `json:"text"`
}

// MaxWebPreview bounds the text of a WebPreview, in bytes.
const MaxWebPreview = 64 << 10

// WebApprovalPoll is how many seconds core keeps an ask without a decision.
const WebApprovalPoll = 20

// ApprovalState is how far a request that needs approval is.
type ApprovalState string

// The states. The first is not final, and an approval that its webproxy did
// not take becomes lost.
const (
	ApprovalWaiting   ApprovalState = "waiting"
	ApprovalApproved  ApprovalState = "approved"
	ApprovalDenied    ApprovalState = "denied"
	ApprovalExpired   ApprovalState = "expired"   // nobody decided in time
	ApprovalWithdrawn ApprovalState = "withdrawn" // its user does not wait any more
	ApprovalLost      ApprovalState = "lost"      // its webproxy was restarted or is away for good, or did not send it
)

// WebApproval answers a WebApprovalAsk. With Error set the request must not
// leave; CodeDraining and CodeInternal are worth asking again.
type WebApproval struct {
	Error *Error        `json:"error,omitempty"`
	State ApprovalState `json:"state,omitempty"`
	// By and Text are who decided and the reason given, for the user.
	By   string `json:"by,omitempty"`
	Text string `json:"text,omitempty"`
	// LeftS is how many seconds it may go on waiting.
	LeftS int64 `json:"left_s,omitempty"`
}

// WebRecordsAck says up to where records of this source are kept: Next is the
// sequence number that core wants next. Retry: the session is not carried by
// this core now; keep the records. Gone: it is over; drop them.
type WebRecordsAck struct {
	Next  uint64 `json:"next"`
	Retry bool   `json:"retry,omitempty"`
	Gone  bool   `json:"gone,omitempty"`
}

// WebFiles lists what is in a session's file folder.
type WebFiles struct {
	Files []WebFile `json:"files"`
}

// WebFile is one file or folder; Path is relative with slashes.
type WebFile struct {
	Path     string `json:"path"`
	Dir      bool   `json:"dir,omitempty"`
	Size     int64  `json:"size_bytes"`
	Modified int64  `json:"modified"` // unix seconds
}

// WebCapacity is a carrier's or a webproxy's part of its Status.
type WebCapacity struct {
	Live int `json:"live"`
	Warm int `json:"warm"`
	// Max is the most sessions by configuration; Room how many more fit now.
	Max  int `json:"max"`
	Room int `json:"room"`
	// Problem is why there is no room, for people: "image caponier-browser is
	// missing: run make images".
	Problem string `json:"problem,omitempty"`
	// Address is where carriers reach this webproxy.
	Address string `json:"address,omitempty"`
	// Engines are the browsers that a carrier has; none said: Firefox alone.
	Engines []WebEngine `json:"engines,omitempty"`
}

// WebEngine is a browser that a carrier has.
type WebEngine struct {
	Name string `json:"name"`
	Warm int    `json:"warm"` // of WebCapacity.Warm
	// Problem is why it cannot be started, for people; empty: it can.
	Problem string `json:"problem,omitempty"`
}

// MaxWebEngines bounds WebCapacity.Engines.
const MaxWebEngines = 8

// Engine returns what a carrier says of a browser; ok is false when it has none
// such.
func (w *WebCapacity) Engine(name string) (e WebEngine, ok bool) {
	if len(w.Engines) == 0 && name == Firefox {
		return WebEngine{Name: Firefox, Warm: w.Warm}, true
	}
	for _, e := range w.Engines {
		if e.Name == name {
			return e, true
		}
	}
	return WebEngine{}, false
}
