package cutdisk

// The part of the NBD protocol (fixed newstyle handshake, simple replies) that qemu's client needs: read, write, write zeroes, flush, FUA.
// Every request is done before the next one is read, so a flush covers just the writes that came before it.
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
)

const (
	magicInit    = 0x4e42444d41474943 // NBDMAGIC
	magicOption  = 0x49484156454f5054 // IHAVEOPT
	magicReply   = 0x0003e889045565a9
	magicRequest = 0x25609513
	magicSimple  = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optionExportName = 1
	optionAbort      = 2
	optionInfo       = 6
	optionGo         = 7

	replyAck         = 1
	replyInfo        = 3
	replyUnsupported = 1<<31 + 1

	infoExport    = 0
	infoBlockSize = 3

	transmissionFlags = 1<<0 | 1<<2 | 1<<3 | 1<<6 // has flags, flush, FUA, write zeroes

	commandRead        = 0
	commandWrite       = 1
	commandDisconnect  = 2
	commandFlush       = 3
	commandWriteZeroes = 6

	commandFlagFUA = 1 << 0

	requestMax = 32 << 20
	zeroesStep = 1 << 20
)

// Serve serves the disk to whoever connects to the listener, until that is closed; then it returns
// what went wrong with a client. From the cut on nothing is answered: a client waits
// until it is killed, as a machine without power does not see an error either.
func (d *Disk) Serve(listener net.Listener) error {
	var fault atomic.Pointer[error]
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			if err := fault.Load(); err != nil {
				return fmt.Errorf("an NBD client: %w", *err)
			}
			return nil
		}
		if err != nil {
			return err
		}
		done := make(chan struct{})
		d.mu.Lock()
		cut := d.cut
		if !cut {
			d.clients[conn] = done
		}
		d.mu.Unlock()
		if cut {
			conn.Close()
			continue
		}
		go func() {
			err := d.serve(conn)
			if errors.Is(err, ErrCut) {
				_, _ = io.Copy(io.Discard, conn) // until the client is gone
			} else if err != nil && !gone(err) {
				fault.CompareAndSwap(nil, &err)
			}
			conn.Close()
			d.mu.Lock()
			delete(d.clients, conn)
			d.mu.Unlock()
			close(done)
		}()
	}
}

// gone says whether an error is that of a client which was killed or left.
func gone(err error) bool {
	for _, how := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, how) {
			return true
		}
	}
	return false
}

func (d *Disk) serve(conn net.Conn) error {
	in, out := bufio.NewReaderSize(conn, 1<<20), bufio.NewWriterSize(conn, 1<<20)
	if err := d.negotiate(in, out); err != nil {
		return err
	}
	var request struct {
		Magic       uint32
		Flags, Type uint16
		Cookie      uint64
		Offset      uint64
		Length      uint32
	}
	buffer := []byte(nil)
	for {
		if err := binary.Read(in, binary.BigEndian, &request); err != nil {
			return err
		}
		if request.Magic != magicRequest || request.Length > requestMax && request.Type != commandWriteZeroes {
			return fmt.Errorf("NBD request %+v: not one of the protocol, or longer than %d bytes", request, requestMax)
		}
		length := int(request.Length)
		if request.Type == commandWriteZeroes {
			length = min(length, zeroesStep)
		}
		if cap(buffer) < length {
			buffer = make([]byte, length)
		}
		data := buffer[:length]
		fua := request.Flags&commandFlagFUA != 0
		var answer []byte
		var err error
		switch request.Type {
		case commandDisconnect:
			return nil
		case commandRead:
			_, err = d.ReadAt(data, int64(request.Offset))
			answer = data
		case commandWrite:
			if _, err = io.ReadFull(in, data); err != nil {
				return err
			}
			err = d.WriteAt(data, int64(request.Offset), fua)
		case commandWriteZeroes:
			clear(data)
			for done := 0; done < int(request.Length) && err == nil; done += len(data) {
				data = data[:min(len(data), int(request.Length)-done)]
				err = d.WriteAt(data, int64(request.Offset)+int64(done), fua)
			}
		case commandFlush:
			err = d.Flush()
		default:
			err = os.ErrInvalid
		}
		if errors.Is(err, ErrCut) {
			return err
		}
		var reply struct {
			Magic, Error uint32
			Cookie       uint64
		}
		reply.Magic, reply.Cookie = magicSimple, request.Cookie
		if err != nil {
			answer = nil
			reply.Error = uint32(syscall.EIO)
			if errors.Is(err, os.ErrInvalid) {
				reply.Error = uint32(syscall.EINVAL)
			}
		}
		if err := binary.Write(out, binary.BigEndian, reply); err != nil {
			return err
		}
		if _, err := out.Write(answer); err != nil {
			return err
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

func (d *Disk) negotiate(in *bufio.Reader, out *bufio.Writer) error {
	put := func(values ...any) error {
		for _, value := range values {
			if err := binary.Write(out, binary.BigEndian, value); err != nil {
				return err
			}
		}
		return out.Flush()
	}
	if err := put(uint64(magicInit), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes)); err != nil {
		return err
	}
	var client uint32
	if err := binary.Read(in, binary.BigEndian, &client); err != nil {
		return err
	}
	for {
		var option struct {
			Magic        uint64
			Type, Length uint32
		}
		if err := binary.Read(in, binary.BigEndian, &option); err != nil {
			return err
		}
		if option.Magic != magicOption || option.Length > 1<<16 {
			return fmt.Errorf("NBD option %+v: not one of the protocol", option)
		}
		if _, err := io.CopyN(io.Discard, in, int64(option.Length)); err != nil {
			return err
		}
		reply := func(kind uint32, data ...any) error {
			length := 0
			for _, value := range data {
				length += binary.Size(value)
			}
			return put(append([]any{uint64(magicReply), option.Type, kind, uint32(length)}, data...)...)
		}
		var err error
		switch option.Type {
		case optionExportName:
			err = put(uint64(d.size), uint16(transmissionFlags))
			if err == nil && client&flagNoZeroes == 0 {
				err = put(make([]byte, 124))
			}
			return err
		case optionAbort:
			_ = reply(replyAck)
			return net.ErrClosed
		case optionInfo, optionGo:
			err = errors.Join(
				reply(replyInfo, uint16(infoExport), uint64(d.size), uint16(transmissionFlags)),
				reply(replyInfo, uint16(infoBlockSize), uint32(Sector), uint32(4096), uint32(requestMax)),
				reply(replyAck),
			)
			if option.Type == optionGo {
				return err
			}
		default:
			err = reply(replyUnsupported)
		}
		if err != nil {
			return err
		}
	}
}
