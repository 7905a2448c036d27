package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// Bounds of the admin API for findings.
const (
	maxFindingBody  = 16 << 10 // bytes of a request; a reason has at most 4,096
	findingAnswers  = 4        // questions to ClickHouse at a time
	findingPatience = time.Minute
	defaultListed   = 100
)

// storing is a role that has findings in its store.
type storing interface {
	// database gives the store, or why it cannot be asked now.
	database() (*sink.ClickHouse, error)
}

// errNoFindings is a role without a store.
var errNoFindings = errors.New("this process stores no findings; ask the one that detects")

func (s *service) database() (*sink.ClickHouse, error) {
	if st, ok := s.store.(*durableStore); ok {
		return st.database()
	}
	return nil, errNoFindings
}

func (d *detection) database() (*sink.ClickHouse, error) { return d.store.database() }

func (a *allRoles) database() (*sink.ClickHouse, error) {
	for _, r := range a.roles {
		if d, ok := r.role.(*detection); ok {
			return d.database()
		}
	}
	return nil, errNoFindings
}

// findings adds what `postern finding` does to the admin address:
//
//	GET  /findings?since=&severity=&type=&owner=&suppressed-by=&grouped-by=&unjudged=&limit=
//	GET  /findings/ID
//	POST /findings/ID/ack, /true, /false-positive    {"by": …, "reason": …}
//	POST /findings/ID/suppress                       and {"ticket": …, "owner": …, "days": …}; answers with YAML
func (a *admin) findings(mux *http.ServeMux) {
	free := make(chan struct{}, findingAnswers)
	handle := func(pattern string, do func(http.ResponseWriter, *http.Request, *desk) error) {
		mux.Handle(pattern, a.guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case free <- struct{}{}:
				defer func() { <-free }()
			default:
				w.Header().Set("Retry-After", "1")
				http.Error(w, "too many questions at a time; ask again in a second", http.StatusServiceUnavailable)
				return
			}
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(findingPatience)) // every server of this kind can
			ctx, cancel := context.WithTimeout(r.Context(), findingPatience)
			defer cancel()
			d, err := a.desk()
			if err == nil {
				err = do(w, r.WithContext(ctx), d)
			}
			if err != nil {
				a.refuse(w, r, err)
			}
		})))
	}
	handle("GET /findings", serveFindings)
	handle("GET /findings/{id}", func(w http.ResponseWriter, r *http.Request, d *desk) error {
		f, err := d.show(r.Context(), r.PathValue("id"))
		if err != nil {
			return err
		}
		return answerJSON(w, f)
	})
	for _, v := range verbs {
		handle("POST /findings/{id}/"+v.name, func(w http.ResponseWriter, r *http.Request, d *desk) error {
			var said verdict
			if err := a.read(w, r, &said); err != nil {
				return err
			}
			f, err := d.judge(r.Context(), r.PathValue("id"), v.judgment, v.reason, said)
			if err != nil {
				return err
			}
			a.log.Info("a finding was judged", "finding", f.ID, "judgment", v.judgment, "by", said.By, "from", r.RemoteAddr)
			shown, err := d.show(r.Context(), f.ID)
			if err != nil {
				return err
			}
			return answerJSON(w, shown)
		})
	}
	handle("POST /findings/{id}/suppress", func(w http.ResponseWriter, r *http.Request, d *desk) error {
		var asked draftRequest
		if err := a.read(w, r, &asked); err != nil {
			return err
		}
		_, text, err := d.draft(r.Context(), r.PathValue("id"), asked)
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = io.WriteString(w, text) // the client went away; there is nobody to tell
		return nil
	})
}

// desk is where this process's findings are.
func (a *admin) desk() (*desk, error) {
	s, ok := a.role.(storing)
	if !ok {
		return nil, errNoFindings
	}
	db, err := s.database()
	if err != nil {
		return nil, err
	}
	return &desk{db: db, now: wallClock, via: "api"}, nil
}

// errOpen is a judgment where anyone may read.
var errOpen = errors.New("admin.open lets anyone who reaches this address read; judging needs a token: set admin.open to false")

// read reads the body of a request that changes something.
func (a *admin) read(w http.ResponseWriter, r *http.Request, into any) error {
	if a.token == "" {
		return errOpen
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return invalid(errors.New("the body is not said to be JSON; send Content-Type: application/json"))
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxFindingBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return invalid(fmt.Errorf(`the body cannot be read (%w); send {"by": NAME, "reason": TEXT}`, err))
	}
	return nil
}

// refuse answers with what is wrong.
func (a *admin) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusServiceUnavailable
	_, bad := errors.AsType[invalidError](err)
	_, many := errors.AsType[*sink.AmbiguousError](err)
	switch {
	case bad, many:
		status = http.StatusBadRequest
	case errors.Is(err, sink.ErrNoFinding), errors.Is(err, errNoFindings):
		status = http.StatusNotFound
	case errors.Is(err, errOpen):
		status = http.StatusForbidden
	default:
		a.log.Warn("findings cannot be asked for", "path", r.URL.Path, "error", err)
	}
	http.Error(w, err.Error(), status)
}

func answerJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(flow.EscapeDEL(b), '\n')) // the client went away; there is nobody to tell
	return nil
}

func serveFindings(w http.ResponseWriter, r *http.Request, d *desk) error {
	v := r.URL.Query()
	q := findingQuery{since: v.Get("since"), severity: v.Get("severity"), typ: v.Get("type"), owner: v.Get("owner"), suppressedBy: v.Get("suppressed-by"), groupedBy: v.Get("grouped-by"), limit: defaultListed}
	for key := range v {
		switch key {
		case "since", "severity", "type", "owner", "suppressed-by", "grouped-by", "unjudged", "limit":
		default:
			return invalid(fmt.Errorf("%.80q is no filter; write since, severity, type, owner, suppressed-by, grouped-by, unjudged or limit", key))
		}
	}
	var err error
	if s := v.Get("unjudged"); s != "" {
		if q.unjudged, err = strconv.ParseBool(s); err != nil {
			return invalid(fmt.Errorf("unjudged is %.80q; write true or false", s))
		}
	}
	if s := v.Get("limit"); s != "" {
		if q.limit, err = strconv.Atoi(s); err != nil {
			return invalid(fmt.Errorf("limit is %.80q; write a number from 1 to %d", s, maxListed))
		}
	}
	filter, err := q.filter(d.now())
	if err != nil {
		return err
	}
	filter.Limit++ // to know whether there are more
	list, err := d.db.Findings(r.Context(), filter)
	if err != nil {
		return err
	}
	more := len(list) == filter.Limit
	if more {
		list = list[:q.limit]
	}
	if list == nil {
		list = []sink.JudgedFinding{}
	}
	return answerJSON(w, struct {
		Findings []sink.JudgedFinding `json:"findings"`
		More     bool                 `json:"more"` // than limit
	}{list, more})
}
