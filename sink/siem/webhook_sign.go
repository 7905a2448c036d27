package siem

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The headers of Standard Webhooks 1.0.0 ("Webhook headers").
const (
	HeaderWebhookID        = "webhook-id"
	HeaderWebhookTimestamp = "webhook-timestamp"
	HeaderWebhookSignature = "webhook-signature"
)

// WebhookTolerance is how far webhook-timestamp may be from the receiver's clock:
// the five minutes that the reference libraries use.
const WebhookTolerance = 5 * time.Minute

// What Verify refuses for; a receiver answers all of them with 401.
var (
	ErrWebhookHeaders   = errors.New("webhook-id, webhook-timestamp or webhook-signature is missing or malformed")
	ErrWebhookTimestamp = errors.New("webhook-timestamp is too far from this clock")
	ErrWebhookSignature = errors.New("no signature matches a secret")
)

// webhookKey is one secret: symmetric (HMAC-SHA256, "v1") or asymmetric
// (ed25519, "v1a"); a public key can only verify.
type webhookKey struct {
	hmac    []byte
	private ed25519.PrivateKey
	public  ed25519.PublicKey
}

// parseWebhookKey reads whsec_ (24 to 64 bytes), whsk_ (an ed25519 seed of 32
// bytes, or the seed followed by its public key) and, if verifying, whpk_. The
// error never repeats the secret.
func parseWebhookKey(secret string, verifying bool) (webhookKey, error) {
	prefix, text, _ := strings.Cut(secret, "_")
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return webhookKey{}, errors.New("the part of the secret after the prefix is no standard base64")
	}
	switch {
	case prefix == "whsec":
		if len(raw) < 24 || len(raw) > 64 {
			return webhookKey{}, fmt.Errorf("a whsec_ secret holds %d bytes; it must hold 24 to 64, for instance from `openssl rand -base64 32`", len(raw))
		}
		return webhookKey{hmac: raw}, nil
	case prefix == "whsk":
		if len(raw) != ed25519.SeedSize && len(raw) != ed25519.PrivateKeySize {
			return webhookKey{}, fmt.Errorf("a whsk_ key holds %d bytes; it must hold an ed25519 seed of 32", len(raw))
		}
		private := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
		if len(raw) == ed25519.PrivateKeySize && !bytes.Equal(raw, private) {
			return webhookKey{}, errors.New("the two halves of a whsk_ key do not belong together; it must hold an ed25519 seed and its own public key")
		}
		return webhookKey{private: private, public: private.Public().(ed25519.PublicKey)}, nil
	case prefix == "whpk" && verifying:
		if len(raw) != ed25519.PublicKeySize {
			return webhookKey{}, fmt.Errorf("a whpk_ key holds %d bytes; it must hold 32", len(raw))
		}
		return webhookKey{public: raw}, nil
	}
	if verifying {
		return webhookKey{}, errors.New("a secret to verify with must begin with whsec_, whpk_ or whsk_")
	}
	return webhookKey{}, errors.New("a secret to sign with must begin with whsec_ (HMAC-SHA256) or whsk_ (ed25519)")
}

func parseWebhookKeys(secrets []string, verifying bool) ([]webhookKey, error) {
	if len(secrets) == 0 {
		return nil, errors.New("there is no secret; give at least one that begins with whsec_ or whsk_")
	}
	keys := make([]webhookKey, len(secrets))
	for i, s := range secrets {
		k, err := parseWebhookKey(s, verifying)
		if err != nil {
			return nil, fmt.Errorf("secret %d: %w", i+1, err)
		}
		keys[i] = k
	}
	return keys, nil
}

// signedContent is what is signed: id.timestamp.body.
func signedContent(id, timestamp string, body []byte) []byte {
	b := make([]byte, 0, len(id)+len(timestamp)+len(body)+2)
	b = append(append(b, id...), '.')
	b = append(append(b, timestamp...), '.')
	return append(b, body...)
}

func (k webhookKey) mac(content []byte) []byte {
	h := hmac.New(sha256.New, k.hmac)
	h.Write(content)
	return h.Sum(nil)
}

// signWebhook gives the value of webhook-signature: one signature a key,
// separated by spaces, in the order of the keys.
func signWebhook(keys []webhookKey, id, timestamp string, body []byte) string {
	content := signedContent(id, timestamp, body)
	var b []byte
	for i, k := range keys {
		if i > 0 {
			b = append(b, ' ')
		}
		if k.private != nil {
			b = base64.StdEncoding.AppendEncode(append(b, "v1a,"...), ed25519.Sign(k.private, content))
		} else {
			b = base64.StdEncoding.AppendEncode(append(b, "v1,"...), k.mac(content))
		}
	}
	return string(b)
}

// maxWebhookSignatures bounds the work a forged header can cause.
const maxWebhookSignatures = 16

// Verify checks a received webhook by Standard Webhooks 1.0.0: the three headers
// are there, the timestamp is within tolerance of now (inclusive, either way), and
// one of the signatures was made with one of the secrets, compared in constant
// time. body is the body as received, byte for byte. Secrets begin with whsec_,
// whpk_ or whsk_. The errors are ErrWebhookHeaders, ErrWebhookTimestamp and
// ErrWebhookSignature, wrapped; any other error is about the secrets. Whoever
// must not act twice remembers the webhook-id.
func Verify(secrets []string, h http.Header, body []byte, tolerance time.Duration, now time.Time) error {
	keys, err := parseWebhookKeys(secrets, true)
	if err != nil {
		return fmt.Errorf("verifying a webhook: %w", err)
	}
	id, stamp, signatures := h.Get(HeaderWebhookID), h.Get(HeaderWebhookTimestamp), h.Get(HeaderWebhookSignature)
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if id == "" || signatures == "" || err != nil {
		return fmt.Errorf("verifying a webhook: %w", ErrWebhookHeaders)
	}
	if at := time.Unix(seconds, 0); at.Before(now.Truncate(time.Second).Add(-tolerance)) || at.After(now.Add(tolerance)) {
		return fmt.Errorf("verifying a webhook: %w", ErrWebhookTimestamp)
	}
	content := signedContent(id, stamp, body)
	for i, signature := range strings.Split(signatures, " ") {
		version, text, _ := strings.Cut(signature, ",")
		got, err := base64.StdEncoding.DecodeString(text)
		if err != nil || i >= maxWebhookSignatures {
			continue
		}
		for _, k := range keys {
			switch {
			case version == "v1" && k.hmac != nil && hmac.Equal(got, k.mac(content)),
				version == "v1a" && k.public != nil && ed25519.Verify(k.public, content, got):
				return nil
			}
		}
	}
	return fmt.Errorf("verifying a webhook: %w", ErrWebhookSignature)
}

// NewWebhookSecret makes a whsec_ secret of 32 random bytes.
func NewWebhookSecret() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return "whsec_" + base64.StdEncoding.EncodeToString(b[:])
}
