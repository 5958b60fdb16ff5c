"Broken and hostile TensorFlow checkpoints: thousands of mutations, in a process that has little memory."
import itertools, json, os, random, sys, tempfile, time
from collections import Counter
from pathlib import Path
import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
SEED = 20

def arrays():
    "A tensor of every sort"
    r = np.random.default_rng(SEED)
    return {'base_model/conv2d/kernel': r.standard_normal((3,3,2,4)).astype('f4'), 'base_model/conv2d/kernel/Momentum': np.full((3,3,2,4), .25, 'f4'),
            'base_model/conv2d_1/kernel': r.standard_normal((1,1,4,4)).astype('f4'), 'base_model/batch_normalization/gamma': r.standard_normal(4).astype('f2'),
            'head_contrastive/nl_0/dense/kernel': r.standard_normal((6,4)), 'half': np.float32([1, -2, .5]), 'global_step': np.array(4321), 'flags': np.array([True, False]),
            'wave': np.array([1+2j], 'c8'), 'none': np.zeros((0,5), 'f4'), '_CHECKPOINTABLE_OBJECT_GRAPH': np.array(b'a graph '*20, object),
            'words': np.array([[b'one', b''], [b'\0\xff', b'w'*130]], object), 'bytes': np.arange(40, dtype='u1')}

CUTS = {'head_contrastive/nl_0/dense/kernel': [[(0,3),(0,0)], [(3,3),(0,2)], [(3,3),(2,2)]]}
NUMBERS = [0, 1, 2, 7, 8, 14, 127, 128, 2**16, 2**31-1, 2**32, 2**40, 2**60, 2**63-1, 2**63, 2**64-1]

def damage(b, rnd, tfb):
    "Bytes with something wrong somewhere"
    b = bytearray(b)
    i, n = rnd.randrange(len(b)+1), rnd.choice([1, 1, 2, 4, 8, 50, 300])
    match rnd.randrange(8):
        case 0:
            for _ in range(rnd.choice([1, 1, 2, 8])): b[rnd.randrange(len(b))] ^= 1 << rnd.randrange(8)
        case 1: del b[i:]
        case 2: del b[i:i+n]
        case 3: b[i:i] = rnd.randbytes(n)
        case 4: b[i:i+n] = bytes(len(b[i:i+n]))
        case 5: b[i:i+n] = rnd.randbytes(len(b[i:i+n]))
        case 6: b[i:i+n] = b[(j := rnd.randrange(len(b))):j+n]
        case 7: b[i:i+rnd.choice([0, 1, 2])] = tfb.varint(rnd.choice(NUMBERS))
    return bytes(b)

def odd_record(rnd, tfb):
    "A record for an entry, of numbers that mean trouble"
    n = lambda: rnd.choice(NUMBERS)
    shape = [n() for _ in range(rnd.choice([0, 1, 2, 3, 40]))]
    cuts = [[(n(), n()) for _ in shape] for _ in range(rnd.choice([0, 0, 0, 1, 3]))]
    return tfb.entry(n(), shape, rnd.choice([0, 0, 1, n()]), n(), n(), n(), cuts)

class Fuzz:
    def __init__(self, folder):
        sys.path.insert(0, str(HERE))
        import tf_bundle as tfb
        from simclrv2_nb import checkpoint as cp
        self.tfb, self.cp, self.rnd, self.folder = tfb, cp, random.Random(SEED), Path(folder)
        self.prefix = tfb.write_tf_checkpoint(self.folder/'small', arrays(), 2, bfloat16s=['half'], slices=CUTS, block_size=200)
        self.files = sorted(o for o in self.folder.iterdir() if o.name != 'checkpoint')
        self.good, self.content = {o: o.read_bytes() for o in self.files}, dict(cp.read_tf_checkpoint(self.prefix))
        self.index, raw = self.folder/'small.index', self.good[self.folder/'small.index']
        self.items = cp._table(raw)
        top = list(cp._entries(cp._block(raw, *cp._places(raw[-48:], 2)[1])))
        self.ends, self.blocks = [k for k,_ in top], [cp._block(raw, *cp._places(v)[0]) for _,v in top]
        self.seen, self.slowest = Counter(), 0

    def outcome(self):
        "What comes of reading everything"
        try: res = dict(self.cp.read_tf_checkpoint(self.prefix))
        except (ValueError, OSError) as e:
            assert 'small' in str(e) and len(str(e)) < 10000, f'no file name, or too long: {str(e)[:300]}'
            return 'refused'
        assert sum(a.nbytes for a in res.values()) <= 10*sum(map(len, self.good.values()))
        same = res.keys() == self.content.keys() and all(a.dtype == self.content[k].dtype and np.array_equal(a, self.content[k]) for k,a in res.items())
        return 'same' if same else 'other'

    def try_(self, what, strict, **files):
        "Write these files, read the checkpoint, and put them back"
        for k,v in files.items(): self.write(f'small.{k.replace("_", "-")}', v)
        t0 = time.process_time()
        o = self.outcome()
        dt = time.process_time()-t0
        assert dt < 1, f'{what}: {dt:.1f} s'
        assert not strict or o in ('refused', 'same'), f'{what}: read, and it was not what had been written'
        self.slowest, self.seen[f'{what}: {o}'] = max(self.slowest, dt), self.seen[f'{what}: {o}']+1
        for k in files: self.write(f := f'small.{k.replace("_", "-")}', self.good[self.folder/f])

    def write(self, name, raw):
        "A new file: a disk waits when an old one is cut to nothing and written again"
        (self.folder/name).unlink()
        (self.folder/name).write_bytes(raw)

    def bytes_of(self, file, n, what):
        "Damage anywhere; nothing is put right"
        for _ in range(n): self.try_(what, True, **{file.name.removeprefix('small.').replace('-', '_'): damage(self.good[file], self.rnd, self.tfb)})

    def inside_blocks(self, n):
        "Damage in a block, whose checksum and place are then put right"
        for _ in range(n):
            blocks, ends = list(self.blocks), list(self.ends)
            for _ in range(self.rnd.choice([1, 1, 3])):
                i = self.rnd.randrange(len(blocks))
                if blocks[i]: blocks[i] = damage(blocks[i], self.rnd, self.tfb)
            if self.rnd.random() < .1: self.rnd.shuffle(blocks)
            self.try_('inside blocks', False, index=self.tfb.table_file(blocks, ends))

    def inside_records(self, n):
        "Names and records that are damaged or made up, in a table that is right"
        for _ in range(n):
            items, k = dict(self.items), self.rnd.choice(list(self.items))
            match self.rnd.randrange(5):
                case 0 | 1: items[k] = damage(items[k], self.rnd, self.tfb) if items[k] else b'\1'
                case 2: items[k] = odd_record(self.rnd, self.tfb)
                case 3: items[damage(k + b'x', self.rnd, self.tfb)] = items.pop(k)
                case 4: items[k], items[j] = items[j := self.rnd.choice(list(items))], items[k]
            pairs = sorted(items.items())
            if self.rnd.random() < .1: self.rnd.shuffle(pairs)
            self.try_('inside records', False, index=self.tfb.index_file(pairs, block_size=self.rnd.choice([50, 200, 5000])))

    def inside_strings(self, n):
        "Damage in the bytes of a tensor of strings, or its lengths, with all checksums put right"
        tfb, words = self.tfb, arrays()['words'].reshape(-1).tolist()
        entries = {k: self.cp._tensor(v) for k,v in self.items.items() if k}
        t = entries[b'words']
        data = f'data_{t.shard:05d}_of_00002'
        for _ in range(n):
            claimed = [self.rnd.choice(NUMBERS) if self.rnd.random() < .1 else len(w) for w in words]
            fixed = b''.join(tfb.le(v, 4 if v < 2**32 else 8) for v in claimed)
            rest = tfb.le(tfb.masked(fixed)) + b''.join(words)
            if self.rnd.random() < .5: rest = damage(rest, self.rnd, tfb)
            raw = b''.join(map(tfb.varint, claimed)) + rest
            whole = self.good[self.folder/f'small.{data.replace("_", "-")}'] + raw
            record = tfb.entry(7, t.shape, t.shard, len(whole)-len(raw), len(raw), tfb.masked(fixed, rest))
            self.try_('inside strings', False, index=tfb.index_file(sorted((self.items | {b'words': record}).items())), **{data: whole})

    def every_footer(self):
        "Every bit of the footer and of the list of blocks"
        raw = self.good[self.index]
        for i,bit in itertools.product(range(len(raw)-48-len(self.ends)*8, len(raw)), range(8)):
            self.try_('footer', True, index=raw[:i] + bytes([raw[i] ^ 1 << bit]) + raw[i+1:])

    def every_cut(self):
        "The index and the data cut short at every byte"
        for f in self.files:
            for i in range(0, len(self.good[f]), 1 if f == self.index else 7): self.try_('cut short', True, **{f.name.removeprefix('small.').replace('-', '_'): self.good[f][:i]})

def little_memory(mb=150):
    "Let this process have no more than so much memory beside what it has"
    import resource
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + mb*2**20,)*2)

def main():
    with tempfile.TemporaryDirectory() as folder:
        f = Fuzz(folder)
        little_memory()
        assert f.outcome() == 'same'
        for o in f.files: f.bytes_of(o, 1200 if o == f.index else 500, 'index' if o == f.index else 'data')
        f.inside_blocks(1500); f.inside_records(1500); f.inside_strings(500); f.every_footer(); f.every_cut()
        assert f.outcome() == 'same'
        print(json.dumps(dict(seen=f.seen, slowest=f.slowest)))

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits its memory as Linux does')
def test_mutations(run, tmp_path):
    "Every one is refused with a ValueError or OSError that names the file, or changes nothing"
    r = json.loads(run(sys.executable, Path(__file__), cwd=tmp_path, timeout=120).stdout.splitlines()[-1])
    seen = Counter(r['seen'])
    assert sum(seen.values()) > 6000
    for what in ('index', 'data', 'inside blocks', 'inside records', 'inside strings', 'footer', 'cut short'): assert seen[f'{what}: refused'] > 200, (what, seen)
    for what in ('inside blocks', 'inside records', 'inside strings'): assert seen[f'{what}: same'] + seen[f'{what}: other'] > 10, (what, seen)    # the parser was reached
    assert seen['footer: same'] and seen['data: same'], seen

def test_needs_only_numpy(run, tmp_path):
    code = "import sys, simclrv2_nb.checkpoint; print(sorted({o.partition('.')[0] for o in sys.modules} & {'torch','fastai','fastcore','tensorflow','safetensors'}))"
    assert run(sys.executable, '-c', code, cwd=tmp_path).stdout.strip() == '[]'

def test_the_writer_writes_what_tensorflow_wrote(tmp_path, monkeypatch):
    "Byte for byte, so that a checkpoint made for a test is like a real one"
    monkeypatch.syspath_prepend(str(HERE))
    from tf_bundle import write_tf_checkpoint
    from simclrv2_nb.checkpoint import read_tf_checkpoint
    real = HERE/'fixtures'/'tf1_r18_w0.125'/'model.ckpt-4321'
    made = write_tf_checkpoint(tmp_path/'made', read_tf_checkpoint(real), block_size=2**18)
    for o in ('index', 'data-00000-of-00001'): assert Path(f'{made}.{o}').read_bytes() == Path(f'{real}.{o}').read_bytes()

def test_large_and_in_shards(tmp_path, monkeypatch):
    "More blocks, more shards, tensors beyond a chunk of the checksum; at any alignment"
    monkeypatch.syspath_prepend(str(HERE))
    from tf_bundle import write_tf_checkpoint
    from simclrv2_nb.checkpoint import read_tf_checkpoint
    r = np.random.default_rng(SEED)
    many = {f'base_model/conv2d_{i}/kernel': r.standard_normal(int(n)).astype('f4') for i,n in enumerate(r.integers(0, 200000, 40))}
    many |= {f'base_model/batch_normalization_{i}/beta': r.standard_normal(16).astype('f4') for i in range(1000)}
    for shards,align in ((1, 1), (7, 64)):
        ckpt = read_tf_checkpoint(write_tf_checkpoint(tmp_path/f'large{shards}', many, shards, align=align))
        assert list(ckpt) == sorted(many) and all(np.array_equal(ckpt[k], v) for k,v in many.items())

if __name__ == '__main__': main()
