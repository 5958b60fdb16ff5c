"""Write TensorFlow checkpoints (V2) without TensorFlow, for tests. Of the library only the CRC is used, so that large ones are quick.

`write_tf_checkpoint` makes good ones: from the arrays in fixtures/tf1_r18_w0.125 the very files that TensorFlow wrote
(with its `block_size` of 2**18). The parts it is made of let a test make bad ones with good checksums."""
from pathlib import Path
import numpy as np
from simclrv2_nb.checkpoint import _crc32c

TYPES = {'float32':1, 'float64':2, 'int32':3, 'uint8':4, 'int16':5, 'int8':6, 'object':7, 'complex64':8, 'int64':9, 'bool':10,
         'bfloat16':14, 'uint16':17, 'complex128':18, 'float16':19, 'uint32':22, 'uint64':23}
MAGIC = 0xdb4775248b80fb57

def masked(*data):
    "Checksum of bytes, as TensorFlow writes it"
    crc = 0
    for o in data: crc = _crc32c(o, crc)
    return (((crc >> 15) | (crc << 17)) + 0xa282ead8) % 2**32

def le(n, size=4): return (n % 2**(8*size)).to_bytes(size, 'little')

def varint(n):
    n, res = n % 2**64, b''
    while n > 127: res, n = res + bytes([n & 127 | 128]), n >> 7
    return res + bytes([n])

def field(number, value, fixed=False):
    "A field of a protobuf message: bytes are a message in it; zeros are left out, as protobuf does"
    if isinstance(value, bytes): return varint(number << 3 | 2) + varint(len(value)) + value
    if fixed: return varint(number << 3 | 5) + le(value)
    return varint(number << 3) + varint(value) if value else b''

def shape_message(shape): return b''.join(field(2, field(1, d)) for d in shape)
def slice_message(extents): return b''.join(field(1, field(1, start) + field(2, length)) for start,length in extents)    # (0, 0): all
def header(num_shards=1, endianness=0, producer=1, min_consumer=0):
    return field(1, num_shards) + field(2, endianness) + field(3, field(1, producer) + field(2, min_consumer))
def entry(dtype, shape, shard=0, offset=0, size=0, crc=0, slices=()):
    return (field(1, dtype) + field(2, shape_message(shape)) + field(3, shard) + field(4, offset) + field(5, size)
            + (field(6, crc, fixed=True) if crc else b'') + b''.join(field(7, slice_message(s)) for s in slices))

class Block:
    "A block of a table, as it grows: names share what they can with the one before, but for every 16th"
    def __init__(self, every=16): self.every, self.raw, self.restarts, self.last, self.n = every, bytearray(), [], b'', 0
    def add(self, name, value):
        shared = 0
        if self.n % self.every == 0: self.restarts.append(len(self.raw))
        else:
            while shared < min(len(name), len(self.last)) and name[shared] == self.last[shared]: shared += 1
        self.raw += varint(shared) + varint(len(name)-shared) + varint(len(value)) + name[shared:] + value
        self.last, self.n = name, self.n+1
    def size(self): return len(self.raw) + 4*len(self.restarts) + 4
    def __bytes__(self):
        restarts = self.restarts or [0]
        return bytes(self.raw) + b''.join(map(le, restarts)) + le(len(restarts))

def block(items, every=16):
    "The block of these names and values"
    res = Block(every)
    for k,v in items: res.add(k, v)
    return bytes(res)

def between(a, b=None):
    "A short name that is not before `a` and, if there is a `b`, before that"
    n = 0
    while b and n < min(len(a), len(b)) and a[n] == b[n]: n += 1
    if b and (n == min(len(a), len(b)) or a[n]+1 >= b[n]): return a
    return a[:n] + bytes([a[n]+1]) if n < len(a) and a[n] < 255 else a

def table_file(contents, ends, kind=0):
    "An index file (an SSTable) of these blocks; `ends[i]` is not before the last name in block i, and before the first in the next"
    out = bytearray()
    def add(content, kind=kind):
        place, content = varint(len(out)) + varint(len(content)), content + bytes([kind])
        out.extend(content + le(masked(content)))
        return place
    places = [add(o) for o in contents]
    tail = add(block([])) + add(block(zip(ends, places), 1))
    return bytes(out) + tail.ljust(40, b'\0') + le(MAGIC, 8)

def index_file(items, block_size=4096, every=16, kind=0):
    "An index file of these names and values, sorted; a block ends when it has reached `block_size`"
    blocks, ends = [Block(every)], []
    for k,v in items:
        if blocks[-1].size() >= block_size:
            ends.append(between(blocks[-1].last, k))
            blocks.append(Block(every))
        blocks[-1].add(k, v)
    return table_file([bytes(o) for o in blocks], ends + [between(blocks[-1].last)], kind)

def string_tensor(strings):
    "The bytes of a tensor of byte strings, and their checksum, which takes the lengths as fixed numbers"
    lengths = b''.join(le(len(s), 4 if len(s) < 2**32 else 8) for s in strings)
    check = le(masked(lengths))
    return b''.join(varint(len(s)) for s in strings) + check + b''.join(strings), masked(lengths, check, *strings)

def ordered(n):
    "A number as bytes that sort as numbers do: as many ones in front as there are bytes; -1 is 0x7f"
    if n == -1: return b'\x7f'
    size = next(k for k in range(1, 11) if n < 2**(7*k-1))
    return (n + sum(2**(8*size-1-i) for i in range(size))).to_bytes(size, 'big')

def slice_name(name, extents):
    "Under which name a slice is listed; (0, 0): all along this axis"
    return b'\0' + name.encode().replace(b'\0', b'\0\xff') + b'\0\1' + bytes([1, len(extents)]) + b''.join(ordered(a) + ordered(n or -1) for a,n in extents)

def bfloat16(a):
    "The upper halves of float32 numbers, which have to be exact"
    bits = np.ascontiguousarray(a, '<f4').view('<u4')
    assert not (bits & 0xffff).any(), 'not a bfloat16'
    return (bits >> 16).astype('<u2')

def write_tf_checkpoint(prefix, mapping, num_shards=1, bfloat16s=(), slices={}, block_size=4096, every=16, align=1):
    """Write `mapping` (name: array; an object array holds byte strings) as the checkpoint `prefix`.

    Tensors go round the `num_shards` data files; names in `bfloat16s` are stored so; `slices[name]` is a list of slices, each a list
    of (start, length) for every axis; `align` is a number of bytes. The file `checkpoint` beside them names this one, by a path that is not here."""
    prefix, items = Path(prefix), {b'': header(num_shards)}
    prefix.parent.mkdir(parents=True, exist_ok=True)
    files = [open(f'{prefix}.data-{i:05d}-of-{num_shards:05d}', 'wb') for i in range(num_shards)]
    def add(name, a, half):
        shard, a = len(items) % num_shards, np.asarray(a)
        dtype = TYPES['bfloat16'] if half else TYPES[a.dtype.name]
        if dtype == TYPES['object']: raw, crc = string_tensor(a.reshape(-1).tolist())
        else:
            raw = np.ascontiguousarray(bfloat16(a) if half else a.astype(a.dtype.newbyteorder('<'), copy=False)).reshape(-1).view('u1')
            crc = masked(raw)
        f = files[shard]
        f.write(bytes(-f.tell() % align))
        items[name] = entry(dtype, a.shape, shard, f.tell(), len(raw), crc)
        f.write(raw)
    for name,a in sorted(mapping.items()):
        half = name in bfloat16s
        if name not in slices: add(name.encode(), a, half)
        else:
            items[name.encode()] = entry(TYPES['bfloat16'] if half else TYPES[a.dtype.name], a.shape, slices=slices[name])
            for s in slices[name]: add(slice_name(name, s), a[tuple(slice(i, i+n) if n else slice(None) for i,n in s)], half)
    for f in files: f.close()
    Path(f'{prefix}.index').write_bytes(index_file(sorted(items.items()), block_size, every))
    (prefix.parent/'checkpoint').write_text(f'model_checkpoint_path: "/machine/that/wrote/it/{prefix.name}"\nall_model_checkpoint_paths: "/machine/that/wrote/it/{prefix.name}"\n')
    return prefix
