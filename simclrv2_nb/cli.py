"""The `simclrv2` command"""
import json, os, platform, sys, time, warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
import typer
from fastai.callback.core import Callback
from fastai.optimizer import Adam
from fastai.torch_core import set_seed
import torch
from simclrv2_nb.augment import SimCLRAugment, FineTuneAugment
from simclrv2_nb.data import fashion_mnist_sample, fashion_classes, label_subset, image_dls
from simclrv2_nb.head import SimCLRModel, Classifier
from simclrv2_nb.resnet import encoder
from simclrv2_nb.pretrain import pretrain_learner
from simclrv2_nb.finetune import finetune_learner
from simclrv2_nb.distill import distill_learner
from simclrv2_nb.evaluate import predict_batches, linear_probe, classifier_accuracy
from simclrv2_nb.loss import nt_xent
from simclrv2_nb.scale import cpu_has_bf16
from simclrv2_nb import show, weights

__all__ = ['app', 'main', 'recipe', 'demo_pretrain', 'demo_supervised', 'demo_finetune', 'demo_distill', 'run_demo', 'demo']

recipe = dict(
    encoder='r18_0.25x_sk0', student='r18_0.125x_sk0',
    pretrain=dict(temperature=0.2, strength=1., min_scale=0.2, bs=256, lr=1.6, warmup=.1),
    supervised=dict(lr=2e-3, steps=200, min_scale=0.5, bs=128, wd=1e-2),
    finetune=dict(lr=0.5, steps=60, min_scale=0.5, bs=128),
    distill=dict(lr=1.6, temperature=0.5, min_scale=0.3, bs=256, warmup=.1),
)

def _encoder(name): return encoder(name, in_channels=1, cifar_stem=True)

def _fit(learn, bars, fit):
    "Call `fit(learn)`, with fastai's bars and table if `bars`"
    with ExitStack() as s:
        if not bars: s.enter_context(learn.no_bar()); s.enter_context(learn.no_logging())
        fit(learn)
    return learn

def demo_pretrain(
    x, # Images without labels, uint8
    valid_x=None, # Images to measure the contrastive top-1 on
    epochs:int=12, # Passes over `x`
    seed:int=0, # Of everything random
    bars:bool=False, # fastai's progress bars
    cbs=None # More callbacks
): # The learner; `.model` is a `SimCLRModel`
    "Stage one with the demo's recipe"
    r = recipe['pretrain']; set_seed(seed)
    learn = pretrain_learner(image_dls(x, valid_x, bs=r['bs']), _encoder(recipe['encoder']), temperature=r['temperature'], lr=r['lr'],
                             augment=SimCLRAugment(28, r['strength'], blur=False, min_scale=r['min_scale']), cbs=cbs)
    return _fit(learn, bars, lambda l: l.fit_warmup_cosine(epochs, warmup=r['warmup']))

def _epochs(steps, dls): return max(1, round(steps/len(dls.train)))

def demo_supervised(
    x, # Labelled images, uint8
    y, # Their classes
    seed:int=0, # Of everything random
    name:str=None # The encoder; None: the recipe's
): # The `Classifier`
    "The baseline: the same network from random weights, on the labelled images alone"
    r = recipe['supervised']; set_seed(seed)
    dls = image_dls((x, y), bs=r['bs'], vocab=fashion_classes)
    learn = finetune_learner(dls, SimCLRModel(_encoder(name or recipe['encoder'])), 0, augment=FineTuneAugment(28, r['min_scale']), opt_func=Adam)
    return _fit(learn, False, lambda l: l.fit_one_cycle(_epochs(r['steps'], dls), r['lr'], wd=r['wd'])).model

def demo_finetune(
    model, # The pretrained `SimCLRModel`
    x, # Labelled images, uint8
    y, # Their classes
    from_layer:int=1, # Where in the head the linear layer goes
    seed:int=0 # Of everything random
): # The `Classifier`
    "Stage two with the demo's recipe"
    r = recipe['finetune']; set_seed(seed)
    dls = image_dls((x, y), bs=r['bs'], vocab=fashion_classes)
    learn = finetune_learner(dls, model, from_layer, augment=FineTuneAugment(28, r['min_scale']), lr=r['lr'])
    return _fit(learn, False, lambda l: l.fit_warmup_cosine(_epochs(r['steps'], dls), warmup=0)).model

def demo_distill(
    teacher, # The fine-tuned `Classifier`
    x, # Images without labels, uint8
    name:str, # The student's encoder
    epochs:int=8, # Passes over `x`
    seed:int=0, # Of everything random
    bars:bool=False # fastai's progress bars
): # The student, a `Classifier`
    "Stage three with the demo's recipe"
    r = recipe['distill']; set_seed(seed)
    dls = image_dls(x, bs=r['bs'])
    learn = distill_learner(dls, teacher, _encoder(name), temperature=r['temperature'], lr=r['lr'], augment=FineTuneAugment(28, r['min_scale']), metrics=None)
    return _fit(learn, bars, lambda l: l.fit_warmup_cosine(epochs, warmup=r['warmup'])).model

class _Estimate(Callback):
    "Say how long the whole demo will take, once the first steps of pretraining have been timed"
    order, first, last = 60, 3, 10
    def __init__(self, say, total): self.say,self.total = say,total
    def after_batch(self):
        if not self.training: return
        if self.train_iter == self.first: self.t = time.perf_counter()
        if self.train_iter == self.last:
            step = (time.perf_counter()-self.t)/(self.last-self.first)
            self.say(f'about {self.total(step)/60:.1f} minutes in all, at {step:.2f} s a step')

def _seconds(step, epochs, distil_epochs, n_batches):
    "Of the whole demo, in units of the pretraining step: one view, a teacher and a student cost less than two views"
    return step * n_batches * (epochs + distil_epochs*(0.75+0.45)) + 45       # labels, scores and pictures

def _write(path, text=None, fig=None):
    "Write a file beside its place and move it there: it is whole or not there"
    path = Path(path); tmp = path.with_name(f'.{path.name}.tmp')
    if fig is None: tmp.write_text(text, encoding='utf-8')
    else: fig.savefig(tmp, format='png')
    tmp.replace(path)

def _check_out(out):
    "The folder `out`, made if missing; an error now, not after training, if it cannot be written"
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out/'.write_test'; probe.write_text(''); probe.unlink()
    except OSError as e: raise ValueError(f'--out {out} cannot be written ({e.strerror}): give another folder') from e
    return out

def _table(rows):
    "The rows as a Markdown table"
    head = '| protocol | parameters | test accuracy (%) | seconds |\n|:--|--:|--:|--:|\n'
    return head + ''.join(f"| {show.labels[r['protocol']]} | {r['params']:,} | {r['accuracy']:.1f} | {r['seconds']:.0f} |\n" for r in rows)

def _verdict(rows, per_class, n):
    "What was bought by what, in two sentences computed from the table"
    a = {r['protocol']: r for r in rows}
    acc = lambda k: a[k]['accuracy']
    best = max(('finetune_layer0','finetune_layer1'), key=acc)
    gain, d, h = acc('finetune_layer1')-acc('supervised'), acc('self_distilled')-acc('finetune_layer1'), acc('distilled_half_width')-acc('finetune_layer1')
    return (f"Pretraining on {n:,} images without labels bought {gain:+.1f} points at {per_class} labels a class: {acc('supervised'):.1f} % from scratch, "
            f"{acc('finetune_layer1'):.1f} % fine-tuned from layer 1 of the projection head (layer 0: {acc('finetune_layer0'):.1f} %, linear probe: {acc('linear_probe'):.1f} %).\n"
            f"Distilling that model on the same images without labels bought {d:+.1f} points at the same size ({acc('self_distilled'):.1f} %), and {h:+.1f} points "
            f"in a student of half the width with {a['distilled_half_width']['params']/a['finetune_layer1']['params']:.0%} of the parameters ({acc('distilled_half_width'):.1f} %).")

def _machine(): return f'{_cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {"bfloat16" if cpu_has_bf16() else "float32"}' if not torch.cuda.is_available() else f'{torch.cuda.get_device_name()}, torch {torch.__version__}'

def _cpu_name():
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor() or platform.machine()

def _pictures(out, d, learn, before, seed):
    "What happened in pretraining, as pictures"
    import matplotlib.pyplot as plt
    show.use_style()
    model, aug = learn.model, learn.sim_clr.augment
    x, gen = d.test_x[:32].float()/255, torch.Generator().manual_seed(seed)
    a, b = aug(x, gen), aug(x, gen)
    zs = [predict_batches(m, torch.cat([a, b])) for m in (before, model)]
    hs = [show.embed_2d(predict_batches(m.encoder, d.test_x[:1000]), seed) for m in (before, model)]
    figs = dict(pairs=show.show_pairs(a, b), training=show.plot_training(learn.recorder.losses, [v[-1] for v in learn.recorder.values]),
                similarity=show.plot_similarity(*zs), embedding=show.plot_embedding(*hs, y=d.test_y[:1000], vocab=fashion_classes))
    for name,fig in figs.items(): _write(out/f'{name}.png', fig=fig); plt.close(fig)

def run_demo(
    out, # Folder for the table, the models and the pictures
    per_class:int=10, # Labelled images of each class
    epochs:int=12, # Of pretraining
    distil_epochs:int=8, # Of each distillation
    seed:int=0, # Of labels, weights and views
    bars:bool=False, # fastai's progress bars
    say=print, # Where messages go
    data=None # `ImageData`; None: the sample in the package
)->list: # The rows of the table
    "All three stages on Fashion-MNIST, and what each bought"
    out, d, t0 = _check_out(out), data or fashion_mnist_sample(), time.perf_counter()
    i = label_subset(d.train_y, per_class, seed=seed)
    if epochs < 1 or distil_epochs < 1: raise ValueError(f'epochs must be ≥ 1, got {epochs} and {distil_epochs}')
    x, y, rows = d.train_x[i], d.train_y[i], []

    def row(protocol, f, keep=True):
        "Run `f`, which gives a model or (accuracy, parameters), and write the table so far"
        t = time.perf_counter(); res = f()
        seconds = time.perf_counter()-t
        acc, params = res if isinstance(res, tuple) else (classifier_accuracy(res, d.test_x, d.test_y), sum(p.numel() for p in res.parameters()))
        rows.append(dict(protocol=protocol, params=params, accuracy=round(100*acc, 2), seconds=round(seconds, 1)))
        if not isinstance(res, tuple): weights.save(res, out/f'{protocol}.safetensors')
        _write(out/'results.json', json.dumps(rows, indent=1)+'\n')
        say(f'{show.labels[protocol]}: {100*acc:.1f} % ({seconds:.0f} s)')
        return res

    say(f'{len(d.train_x):,} images without labels, {len(i)} with; {_machine()}')
    est = _Estimate(say, lambda s: _seconds(s, epochs, distil_epochs, len(d.train_x)//recipe['pretrain']['bs']))
    before = SimCLRModel(_encoder(recipe['encoder']))
    learn = demo_pretrain(d.train_x, d.test_x, epochs, seed, bars, [est])
    model, pre = learn.model, time.perf_counter()-t0
    weights.save(model, out/'pretrained.safetensors')
    say(f'pretrained: contrastive top-1 {100*learn.recorder.values[-1][-1]:.1f} % ({pre:.0f} s)')
    _pictures(out, d, learn, before, seed)

    row('supervised', lambda: demo_supervised(x, y, seed))
    h, ht = predict_batches(model.encoder, x), predict_batches(model.encoder, d.test_x)
    row('linear_probe', lambda: (linear_probe(h, y, ht, d.test_y), sum(p.numel() for p in model.encoder.parameters())+(h.shape[1]+1)*10))
    row('finetune_layer0', lambda: demo_finetune(model, x, y, 0, seed))
    teacher = row('finetune_layer1', lambda: demo_finetune(model, x, y, 1, seed))
    same = row('self_distilled', lambda: demo_distill(teacher, d.train_x, recipe['encoder'], distil_epochs, seed, bars))
    row('distilled_half_width', lambda: demo_distill(same, d.train_x, recipe['student'], distil_epochs, seed, bars))

    import matplotlib.pyplot as plt
    ax = show.plot_labels({r['protocol']: {per_class: [r['accuracy']]} for r in rows})
    _write(out/'labels.png', fig=ax.figure); plt.close(ax.figure)
    verdict = _verdict(rows, per_class, len(d.train_x))
    total = time.perf_counter()-t0
    _write(out/'results.md', f'# SimCLRv2 on Fashion-MNIST, {per_class} labels a class\n\n{_table(rows)}\n{verdict}\n\n'
           f'One run: `simclrv2 demo --seed {seed} --per-class {per_class} --epochs {epochs}`, {len(d.test_x):,} test images, '
           f'pretraining {pre:.0f} s, {total:.0f} s in all, {_machine()}. The linear probe keeps the encoder frozen; fine-tuning and distillation train the whole network.\n')
    say('\n'+_table(rows)+'\n'+verdict)
    say(f'\n{total/60:.1f} minutes. Table, models and pictures: {out}')
    return rows

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help='SimCLRv2: pretrain without labels, fine-tune on few, distil.')

@app.callback()
def _root(): pass

@app.command()
def demo(
    out:Path=typer.Option('demo_results', help='Folder for the table, the models and the pictures'),
    per_class:int=typer.Option(10, help='Labelled images of each class, 1 to 1000'),
    epochs:int=typer.Option(12, help='Passes of pretraining over the 10 000 images'),
    distil_epochs:int=typer.Option(8, help='Passes of each distillation'),
    seed:int=typer.Option(0, help='Of labels, weights and views'),
):
    "All three stages on Fashion-MNIST in about six minutes on a laptop, and a table of what each bought"
    import matplotlib
    matplotlib.use('Agg')
    try: run_demo(out, per_class, epochs, distil_epochs, seed, bars=sys.stdout.isatty(), say=lambda s: print(s, flush=True))
    except (ValueError, OSError) as e: typer.echo(f'error: {e}', err=True); raise typer.Exit(1)
    except KeyboardInterrupt:
        files = ', '.join(sorted(p.name for p in Path(out).glob('[!.]*'))) or 'none yet'
        typer.echo(f'\nstopped. What is in {out} is whole: {files}', err=True); raise typer.Exit(130)

def main():
    "The console script"
    warnings.filterwarnings('ignore', category=FutureWarning, module='torch')      # fastai still uses torch.jit.script
    app()
