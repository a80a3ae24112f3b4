package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4/json" // as for tokens: members that are said twice are refused

	"sidecar/exporter/fhir"
)

const (
	// answerTimeout bounds how long a request of a client waits for the identity server.
	answerTimeout = 5 * time.Second
	// maxAnswer bounds what is read of its answers.
	maxAnswer = 1 << 20
	// questionsAtOnce bounds how many requests it has to answer at once.
	questionsAtOnce = 16
)

// identityServer is asked over HTTP.
type identityServer struct{ client *http.Client }

func newIdentityServer(caFile string, log *slog.Logger) (*identityServer, error) {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, MaxConnsPerHost: questionsAtOnce, MaxIdleConnsPerHost: questionsAtOnce, IdleConnTimeout: time.Minute,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10,
	}
	if caFile != "" {
		certificates, err := fhir.NewTLS(caFile, "", "", log)
		if err != nil {
			return nil, fmt.Errorf("auth.ca_file: %w", err)
		}
		certificates.ApplyTrust(transport)
	}
	return &identityServer{&http.Client{
		Transport: transport, Timeout: answerTimeout,
		// Where an answer comes from is what makes it true, and credentials are for one address.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func (s *identityServer) get(ctx context.Context, address string, into any) (http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, errors.New("the address cannot be asked")
	}
	return s.ask(request, into)
}

// ask reads a JSON answer. Its errors hold no address.
func (s *identityServer) ask(request *http.Request, into any) (http.Header, error) {
	request.Header.Set("Accept", "application/json")
	response, err := s.client.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", response.StatusCode)
	}
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxAnswer {
		return nil, errors.New("the answer is too long")
	}
	if json.Unmarshal(raw, into) != nil { // its error may hold a part of the answer
		return nil, errors.New("the answer is not the JSON that it should be")
	}
	return response.Header, nil
}
