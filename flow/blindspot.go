package flow

// BlindSpot is a stretch of time in which something was not seen, or not as it was usual.
// What did not come within it says nothing.
type BlindSpot struct {
	// ID stays while Until and Details become known better; a later one of the same id replaces it.
	ID string `json:"id"`
	// Kind is the type of the finding that tells of it.
	Kind string `json:"kind"`
	// Subject is what sort of thing is not seen, or does not see: one of the Blind texts.
	Subject string `json:"subject"`
	// About is that in words.
	About string `json:"about"`
	// Address is the exporter's or the host's, of state the prefix that presses most; zero
	// where it is about all of a kind.
	Address Addr `json:"address,omitzero"`
	// Source is the format it tells in, Domain its observation domain, Name the sensor's or the
	// agent's own name, Segment the segment or that of the host; empty where there is none.
	Source  string `json:"source,omitempty"`
	Domain  uint32 `json:"domain,omitempty"`
	Name    string `json:"name,omitempty"`
	Segment string `json:"segment,omitempty"`
	From    Time   `json:"from"`
	Until   Time   `json:"until"` // 0: it is not over
	// Details is what else is known of it, in words.
	Details string `json:"details,omitempty"`
	// Finding is the id of that finding; empty where it is too little to tell anybody of.
	Finding string `json:"finding"`
	// Version rises with every change.
	Version uint64 `json:"version"`
}

// What a blind spot can be about.
const (
	BlindEverything = "everything" // nobody is heard
	BlindExporter   = "exporter"   // or a sensor
	BlindFeed       = "feed"       // all logs of a format of agents, or of a cloud
	BlindHost       = "host"
	BlindSegment    = "segment" // hosts of it
	BlindState      = "state"   // what detectors remember
)
