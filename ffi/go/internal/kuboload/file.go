package kuboload

// What is stored, and how it is read back past Kubo: block by block from the node, each against its own hash.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	dshelp "github.com/ipfs/boxo/datastore/dshelp"
	"github.com/ipfs/boxo/ipld/merkledag"
	unixfs "github.com/ipfs/boxo/ipld/unixfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"
)

// bytesOf makes the bytes of one thing from the seed; other numbers give other bytes.
func bytesOf(seed uint64, size int, numbers ...uint64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	for i, number := range numbers {
		binary.LittleEndian.PutUint64(key[8+8*i:], number)
	}
	data := make([]byte, size)
	rand.NewChaCha8(key).Read(data)
	return data
}

func carHeader(root cid.Cid) []byte {
	link := append([]byte{0}, root.Bytes()...)
	header := append([]byte("\xa2\x65roots\x81\xd8\x2a\x58"), byte(len(link)))
	header = append(header, link...)
	return append(header, "\x67version\x01"...)
}

// carOf makes a CAR with data as a file of raw leaves.
func carOf(data []byte) ([]byte, error) {
	builder := cid.V1Builder{Codec: cid.Raw, MhType: multihash.SHA2_256}
	file := unixfs.NewFSNode(unixfs.TFile)
	root := &merkledag.ProtoNode{}
	var leaves []blocks.Block
	const chunk = 64 << 10
	for at := 0; at < len(data); at += chunk {
		part := data[at:min(at+chunk, len(data))]
		id, err := builder.Sum(part)
		if err != nil {
			return nil, err
		}
		leaf, err := blocks.NewBlockWithCid(part, id)
		if err != nil {
			return nil, err
		}
		leaves = append(leaves, leaf)
		file.AddBlockSize(uint64(len(part)))
		if err := root.AddRawLink("", &ipld.Link{Size: uint64(len(part)), Cid: id}); err != nil {
			return nil, err
		}
	}
	meta, err := file.GetBytes()
	if err != nil {
		return nil, err
	}
	root.SetData(meta)
	if err := root.SetCidBuilder(merkledag.V1CidPrefix()); err != nil {
		return nil, err
	}
	var car []byte
	section := func(parts ...[]byte) {
		length := 0
		for _, part := range parts {
			length += len(part)
		}
		car = binary.AppendUvarint(car, uint64(length))
		for _, part := range parts {
			car = append(car, part...)
		}
	}
	section(carHeader(root.Cid()))
	for _, block := range append(leaves, blocks.Block(root)) {
		section(block.Cid().Bytes(), block.RawData())
	}
	return car, nil
}

// missing is a block that is not there, or not whole: a loss of what it belongs to.
type missing struct {
	id  cid.Cid
	why error
}

func (m missing) Error() string { return fmt.Sprintf("block %s: %v", m.id, m.why) }

// ReadFile puts a file together from the node's blocks.
func ReadFile(ctx context.Context, node ds.Read, id cid.Cid) ([]byte, error) {
	key := ds.NewKey("/blocks").Child(dshelp.MultihashToDsKey(id.Hash()))
	data, err := node.Get(ctx, key)
	if err != nil {
		return nil, missing{id, err}
	}
	if again, err := id.Prefix().Sum(data); err != nil || !again.Equals(id) {
		return nil, missing{id, fmt.Errorf("its %d bytes have another hash (%v)", len(data), err)}
	}
	switch id.Type() {
	case cid.Raw:
		return data, nil
	case cid.DagProtobuf:
	default:
		return nil, errors.New("not a file: " + id.String())
	}
	node1, err := merkledag.DecodeProtobuf(data)
	if err != nil {
		return nil, err
	}
	file, err := unixfs.FSNodeFromBytes(node1.Data())
	if err != nil {
		return nil, err
	}
	all := file.Data()
	for _, link := range node1.Links() {
		part, err := ReadFile(ctx, node, link.Cid)
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	return all, nil
}
