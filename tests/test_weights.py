"""Thousands of damaged safetensors files: each is refused in words, or loads as what was written."""
import random, time, warnings; warnings.filterwarnings('ignore', category=FutureWarning)
from pathlib import Path
import torch
from simclrv2_nb.weights import load

GOOD = Path(__file__).parent/'fixtures'/'weights.safetensors'

def mutate(b, rnd):
    "One or two changes: a bit, a cut, an insertion, zeros, noise, a piece from elsewhere"
    b = bytearray(b)
    for _ in range(rnd.randint(1, 2)):
        if not b: break
        i, k = rnd.randrange(rnd.choice([8, 200, 20_000, len(b)])) % len(b), rnd.choice([1, 8, 300])
        match rnd.randrange(7):
            case 0: b[i] ^= 1 << rnd.randrange(8)
            case 1: del b[i:]
            case 2: del b[i:i+k]
            case 3: b[i:i] = rnd.randbytes(k)
            case 4: b[i:i+k] = bytes(len(b[i:i+k]))
            case 5: b[i:i+k] = rnd.randbytes(len(b[i:i+k]))
            case 6: j = rnd.randrange(len(b)); b[i:i+k] = b[j:j+k]
    return bytes(b)

def test_mutations(tmp_path):
    good, rnd, bad, loaded, slowest = GOOD.read_bytes(), random.Random(1), tmp_path/'bad.safetensors', 0, 0
    want = load(GOOD).state_dict()
    for _ in range(3000):
        bad.write_bytes(mutate(good, rnd))
        t = time.process_time()
        try: got = load(bad).state_dict()
        except ValueError as e: assert 'bad.safetensors' in str(e)
        else:
            assert got.keys() == want.keys() and all(torch.equal(v, want[k]) for k,v in got.items())
            loaded += 1
        slowest = max(slowest, time.process_time()-t)
    assert loaded < 300 and slowest < 1, (loaded, slowest)
