package proxy

import (
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
)

// object reads an object of a bucket from any place, as net/http asks for it: it opens the object where a reading begins.
type object struct {
	open func(offset int64) (io.ReadCloser, error)
	// size is that of the content.
	size int64
	// unpack tells that the object holds the content compressed. It can be read from its start only.
	unpack bool

	at     int64 // where the next Read begins
	body   io.ReadCloser
	rows   io.Reader // what is in the body
	bodyAt int64
}

// begin opens the object, so that a missing one is known before anything is sent.
func (o *object) begin(offset int64) error {
	body, err := o.open(offset)
	if err != nil {
		return err
	}
	o.body, o.rows, o.bodyAt = body, body, offset
	if o.unpack {
		if o.rows, err = gzip.NewReader(body); err != nil {
			return errors.Join(err, o.Close())
		}
	}
	return nil
}

// seeker is the object for net/http: a file of the local disk itself, which has a short way to the socket.
func (o *object) seeker() io.ReadSeeker {
	if file, ok := o.body.(io.ReadSeeker); ok && !o.unpack {
		return file
	}
	return o
}

// Read reads on at the current offset.
func (o *object) Read(p []byte) (int, error) {
	if o.at >= o.size {
		return 0, io.EOF
	}
	if o.body == nil || o.bodyAt != o.at {
		if err := errors.Join(o.Close(), o.begin(o.at)); err != nil {
			return 0, err
		}
	}
	n, err := o.rows.Read(p)
	o.at += int64(n)
	o.bodyAt = o.at
	return n, err
}

// Seek sets the offset as io.Seeker says.
func (o *object) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.at
	case io.SeekEnd:
		offset += o.size
	}
	if offset < 0 {
		return 0, errors.New("seek before the start")
	}
	o.at = offset
	return offset, nil
}

// Close closes what is open.
func (o *object) Close() error {
	if o.body == nil {
		return nil
	}
	body := o.body
	o.body = nil
	return body.Close()
}
