package proxy

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"sidecar/proxy/auth"
	"sidecar/state"
)

// The parameters of a link that the sidecar signed.
const (
	linkExpires = "expires" // the second in which it dies, by Unix time
	linkMAC     = "mac"
)

// needsToken tells whether the files of an export need a token, as its status does. Those at which nobody has to come past
// the sidecar cannot, and where status requests need none, files need none.
func (p *Proxy) needsToken(kickoff *state.Kickoff) bool {
	return p.Links != Signed && p.AuthMode != auth.None && (kickoff.Guarded || p.Auth != nil)
}

// link is where a client reads a file, and how long that works.
func (p *Proxy) link(ctx context.Context, job *state.Job, file state.File, expires time.Time) (string, time.Time, error) {
	if p.Links == Signed {
		link, dies, err := p.sign(ctx, job, file, expires)
		if !errors.Is(err, errors.ErrUnsupported) {
			return link, dies, err
		}
	}
	address := job.Kickoff.Base + "/$export-file/" + job.ID + "/" + url.PathEscape(file.Name)
	if p.needsToken(&job.Kickoff) {
		return address, expires, nil
	}
	dies := time.Now().Add(p.LinkLifetime)
	if expires.Before(dies) {
		dies = expires
	}
	dies = dies.Truncate(time.Second)
	return address + "?" + signLink(p.LinkKey, job.ID, file.Name, dies), dies, nil
}

func (p *Proxy) sign(ctx context.Context, job *state.Job, file state.File, expires time.Time) (string, time.Time, error) {
	return p.Bucket.SignURL(ctx, job.Folder+"/"+file.Name, min(p.LinkLifetime, time.Until(expires)))
}

// signLink is the query by which a file can be read without a token until it dies.
func signLink(key []byte, job, name string, dies time.Time) string {
	expires := strconv.FormatInt(dies.Unix(), 10)
	return linkExpires + "=" + expires + "&" + linkMAC + "=" + base64.RawURLEncoding.EncodeToString(fileMAC(key, job, name, expires))
}

// fileMAC binds a link to one file of one job and to its end. No id and no name of a file holds a slash, so that no two of
// them give the same text.
func fileMAC(key []byte, job, name, expires string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("file/" + job + "/" + name + "/" + expires)) // it does not fail (hash.Hash)
	return mac.Sum(nil)
}

// errDeadLink is told to those whose link has died, or never was one.
var errDeadLink = &refusal{
	http.StatusForbidden, "forbidden", "this link has expired, or is not one of the export's: read the manifest again, which has fresh links",
}

// mayRead tells whether a request for a file is by a living link or, where files need a token, by the owner of the job.
func (p *Proxy) mayRead(r *http.Request, job *state.Job, name string) error {
	if !p.needsToken(&job.Kickoff) || r.URL.Query().Has(linkMAC) {
		return p.checkLink(r, job.ID, name)
	}
	who, err := p.who(r)
	if err != nil {
		return err
	}
	event := eventOf(r)
	event.Client = who.id // also of an attempt that is refused
	if err := p.mayTouch(r, job, who); err != nil {
		return err
	}
	event.Client = job.Kickoff.Client
	return nil
}

// checkLink tells whether a request has a living signature for a file.
func (p *Proxy) checkLink(r *http.Request, job, name string) error {
	query := r.URL.Query()
	expires := query.Get(linkExpires)
	mac, err := base64.RawURLEncoding.Strict().DecodeString(query.Get(linkMAC))
	if err != nil || !hmac.Equal(mac, fileMAC(p.LinkKey, job, name, expires)) {
		return errDeadLink
	}
	dies, err := strconv.ParseInt(expires, 10, 64)
	if err != nil || time.Now().Unix() >= dies {
		return errDeadLink
	}
	return nil
}
