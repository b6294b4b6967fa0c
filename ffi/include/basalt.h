// The C ABI of a Basalt node in the process of its host. Generated from ffi/src by tools/header: do not edit.
//
// - Every function may be called from any thread, at the same time as any other. Calls block until they are done.
// - Bytes go in as a pointer and a length, NULL allowed with 0. They stay where they are and nobody writes to them until the call returns;
//   the library keeps nothing of them. Nobody reads a buffer either while a call fills it. Keys are absolute go-datastore keys in UTF-8, "/blocks/CIQ...".
// - Every call answers with a basalt_outcome; its bytes, also an error's message, go back by basalt_free.
// - Handles and cursors are numbers and never used again: one that is closed is BASALT_KIND_CLOSED, not undefined behaviour.
// - A panic in the node is BASALT_KIND_PANICKED and ends nothing; what became of the call is unknown.
// - The library starts threads, which block all signals, and serves the node on its sockets. Don't fork without exec while a node is open.


#ifndef BASALT_H
#define BASALT_H

#include <stddef.h>
#include <stdint.h>

// The version of this ABI. A program asks `basalt_abi_version` whether it was linked with the library that its header is of.
#define BASALT_ABI_VERSION 1

// What became of a call. The numbers never change; new ones may come.
enum basalt_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Done.
  BASALT_KIND_OK = 0,
  // The key is not there. Without a message.
  BASALT_KIND_NOT_FOUND = 1,
  // The disk, quota or reserve is exhausted: free space, then retry. Deletes still work.
  BASALT_KIND_NO_SPACE = 2,
  // Stored bytes don't match their checksum or key: restore from a replica.
  BASALT_KIND_CORRUPT = 3,
  // A value, key or batch is above a configured limit.
  BASALT_KIND_TOO_LARGE = 4,
  // The key is malformed.
  BASALT_KIND_INVALID_KEY = 5,
  // The value doesn't hash to its key, or an argument makes no sense.
  BASALT_KIND_INVALID_VALUE = 6,
  // The node was opened for reading only.
  BASALT_KIND_READ_ONLY = 7,
  // The outcome is unknown or a store is fenced: reopen, look at the disk.
  BASALT_KIND_UNAVAILABLE = 8,
  // The operation is not offered for this key.
  BASALT_KIND_UNSUPPORTED = 9,
  // Another process owns the node.
  BASALT_KIND_LOCKED = 10,
  // On-disk data of another or newer format, or of another node.
  BASALT_KIND_FORMAT = 11,
  // The handle or its node has been closed.
  BASALT_KIND_CLOSED = 12,
  // The operating system failed an operation in a way not covered above.
  BASALT_KIND_IO = 13,
  // The caller's buffer has less room than `value` bytes; nothing was read.
  BASALT_KIND_BUFFER_TOO_SMALL = 14,
  // The node panicked; the outcome of the call is unknown.
  BASALT_KIND_PANICKED = 15,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum basalt_kind basalt_kind;
#else
typedef uint32_t basalt_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The answer of an entry point.
//
// `kind` is a basalt_kind. `value` is the number that the call answers with. `data` and `len` are the bytes it answers with, or the
// message of an error (UTF-8, without a NUL); NULL and 0 where there are none. They belong to the caller, who gives them back by
// basalt_free.
typedef struct basalt_outcome {
  // A [`Kind`].
  uint32_t kind;
  // What the call answers with, where that is a number.
  uint64_t value;
  // Bytes that the caller gives back by `basalt_free`.
  uint8_t *data;
  // How many.
  size_t len;
} basalt_outcome;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the ABI that the library speaks: `BASALT_ABI_VERSION` of its own header.
uint32_t basalt_abi_version(void);

// Gives back the bytes of an outcome. Any other pointer but NULL, or the same one twice, is undefined behaviour.
void basalt_free(uint8_t *data, size_t len);

// Opens the node in the folder `path`, or one more view of it where this process has it open already.
//
// `hello` is a protobuf message basalt.v1.HandshakeRequest (proto/basalt/v1/datastore.proto): who opens, in which role, which node
// is expected. Another process may own the node: an agent that a plugin started is asked to hand it over, and waited for until
// `wait_ms` have passed; any other owner is BASALT_KIND_LOCKED, with its pid.
//
// Answers with the handle in `value`, and a basalt.v1.HandshakeResponse in `data`.
struct basalt_outcome basalt_open(const uint8_t *path,
                                  size_t path_len,
                                  const uint8_t *hello,
                                  size_t hello_len,
                                  uint64_t wait_ms);

// Closes a view and its queries. The last view of a node closes it, which is a Sync: afterwards all that was acknowledged is on
// stable storage, and other processes may open it. Calls under way in other threads end, well or with BASALT_KIND_CLOSED.
struct basalt_outcome basalt_close(uint64_t handle);

// Reads the value of a key into `buffer`. Answers with its size in `value`, also with BASALT_KIND_BUFFER_TOO_SMALL, where nothing was
// read. What is in the buffer after any error is undefined.
struct basalt_outcome basalt_get(uint64_t handle,
                                 const uint8_t *key,
                                 size_t key_len,
                                 uint8_t *buffer,
                                 size_t capacity);

// Answers with the size of a key's value in `value`. Reads no value.
struct basalt_outcome basalt_size(uint64_t handle, const uint8_t *key, size_t key_len);

// Answers with 1 in `value` where the key is there, else with 0. Reads no value.
struct basalt_outcome basalt_has(uint64_t handle, const uint8_t *key, size_t key_len);

// Stores a value; returns when the node's durability class says so. A block that is there already costs one look-up. With a `ttl_ms`
// that is not 0 the key is gone after that time; BASALT_KIND_UNSUPPORTED for a block, and then nothing is stored.
struct basalt_outcome basalt_put(uint64_t handle,
                                 const uint8_t *key,
                                 size_t key_len,
                                 const uint8_t *value,
                                 size_t value_len,
                                 uint64_t ttl_ms);

// Removes a key; absent is fine.
struct basalt_outcome basalt_delete(uint64_t handle, const uint8_t *key, size_t key_len);

// Applies a batch; the last operation of a key wins. `operations` is one run of bytes, little-endian, for each operation:
//
//     u8  1 for a put, 2 for a delete
//     u32 bytes of the key
//     u64 bytes of the value; 0 for a delete
//     the key, then the value
struct basalt_outcome basalt_batch(uint64_t handle,
                                   const uint8_t *operations,
                                   size_t operations_len);

// Starts a query. `request` is a protobuf message basalt.v1.QueryRequest. Answers with a cursor in `value`, which is to be closed.
struct basalt_outcome basalt_query(uint64_t handle,
                                   const uint8_t *request,
                                   size_t request_len);

// Answers with the next page of a query in `data`; no bytes: the answer is complete. For each entry, little-endian:
//
//     u32 bytes of the key
//     u64 bytes of the value; 0 where the query asked for keys only
//     u64 size of the stored value
//     u64 when the key expires, in milliseconds since the Unix epoch; 0: never
//     the key, then the value
struct basalt_outcome basalt_query_next(uint64_t cursor);

// Ends a query, whether it is complete or not.
struct basalt_outcome basalt_query_close(uint64_t cursor);

// Returns when everything under `prefix` that was put or deleted before is on stable storage.
struct basalt_outcome basalt_sync(uint64_t handle, const uint8_t *prefix, size_t prefix_len);

// Answers with the node's live bytes in `value`: exact, without a walk.
struct basalt_outcome basalt_disk_usage(uint64_t handle);

// Looks whether every store is open, unfenced and answers.
struct basalt_outcome basalt_check(uint64_t handle);

// Reads everything back against its checksums; as long as that takes.
struct basalt_outcome basalt_scrub(uint64_t handle);

// Gives back the space of what was deleted.
struct basalt_outcome basalt_collect_garbage(uint64_t handle);

// Lets a key that is there expire when `ttl_ms` have passed from now; BASALT_KIND_UNSUPPORTED for a block.
struct basalt_outcome basalt_set_ttl(uint64_t handle, const uint8_t *key, size_t key_len, uint64_t ttl_ms);

// Answers in `value` with when a key expires, in milliseconds since the Unix epoch; 0: never.
struct basalt_outcome basalt_expiration(uint64_t handle, const uint8_t *key, size_t key_len);

// Panics with a message, for tests of what becomes of a panic: BASALT_KIND_PANICKED.
struct basalt_outcome basalt_test_panic(const uint8_t *message, size_t message_len);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BASALT_H */
