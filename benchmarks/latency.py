"""Time from raw pixels to probabilities on the CPU, for a teacher and students of several widths.

    python benchmarks/latency.py                      # some two minutes; the machine should be idle

`latency_table` from the package, 96×96 colour images, preprocessing included: PyTorch in float32, in bfloat16 with channels last
where the processor has it, and ONNX Runtime; one image and 32 at a time; one thread and two. Medians; the engines of one model
take turns. The numbers in the networks are random: they do not matter for the time. The result goes to benchmarks/results/latency.json.
"""
import argparse, json, warnings; warnings.filterwarnings('ignore')
from pathlib import Path

OUT = Path(__file__).parent/'results'/'latency.json'
MODELS = {'teacher': 'r50_1x_sk1', 'student, full width': 'r18_1x_sk0', 'student, half': 'r18_0.5x_sk0', 'student, a quarter': 'r18_0.25x_sk0', 'student, an eighth': 'r18_0.125x_sk0'}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', type=int, default=96)
    p.add_argument('--seconds', type=float, default=.3, help='for each number')
    p.add_argument('--threads', type=int, nargs='+', default=[1,2], help='numbers of threads; rows of others that the file has stay')
    p.add_argument('--dry-run', action='store_true', help='print, do not write')
    a = p.parse_args()
    import onnxruntime, torch
    from simclrv2_nb import cli
    from simclrv2_nb.export import latency_table
    from simclrv2_nb.head import SimCLRModel, Classifier
    from simclrv2_nb.resnet import encoder
    torch.manual_seed(0)
    models = {f'{k}: {v}': Classifier(SimCLRModel(encoder(v)), 0, 10) for k,v in MODELS.items()}
    rows = latency_table(models, a.size, batches=(1,32), threads=a.threads, seconds=a.seconds)
    print(rows)
    if a.dry_run: return
    old = [r for r in json.loads(OUT.read_text())['rows'] if r['threads'] not in a.threads] if OUT.exists() else []
    res = dict(command=f'python benchmarks/latency.py --size {a.size} --seconds {a.seconds}', machine=cli._machine(), onnxruntime=onnxruntime.__version__, size=a.size,
               rows=[{**r, 'ms': round(r['ms'], 3), 'images_per_s': round(r['images_per_s'], 1)} for r in old+rows])
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(res, indent=1, ensure_ascii=False)+'\n')

if __name__ == '__main__': main()
