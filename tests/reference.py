"""How far the library is from the reference implementation: each function measures one component against numbers that
the authors' program gave, kept in tests/fixtures.

    python tests/reference.py            # the table of the docs' page `verified`
"""
import json, zlib
from functools import lru_cache
from pathlib import Path
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from simclrv2_nb.augment import (adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, crop_resize, eval_crop, gaussian_blur,
                                 random_crop_boxes, to_grayscale)
from simclrv2_nb.finetune import _frozen_parts
from simclrv2_nb.head import Classifier, ProjectionHead, SimCLRModel
from simclrv2_nb.loss import contrastive_accuracy, distillation_loss, nt_xent
from simclrv2_nb.optim import LARS, lars_groups, scale_lr, warmup_cosine
from simclrv2_nb.released import _AXES, _BACK, _variables, from_tf
from simclrv2_nb.resnet import ResNet, encoder as encoder_by_name

FIXTURES = Path(__file__).parent/'fixtures'

def fixture(name): return np.load(FIXTURES/f'{name}.npz')
def worst(got, want):
    "Largest difference, as a share of the largest number"
    got, want = (o.detach().numpy() if isinstance(o, torch.Tensor) else np.asarray(o) for o in (got, want))
    return float(np.abs(got-want).max() / max(np.abs(want).max(), 1e-12))
def l2(got, want): return float(np.linalg.norm(np.asarray(got)-want) / np.linalg.norm(want))
def nchw(x): return torch.from_numpy(x).permute(0,3,1,2)

def recipe(name, shape):
    "The weights behind the numbers: a variable's name is the seed, its last part names the distribution"
    rng, leaf = np.random.RandomState(zlib.crc32(name.encode()) & 0x7fffffff), name.split('/')[-1]
    if leaf == 'kernel': w = rng.standard_normal(shape) * np.sqrt((2 if len(shape) == 4 else 1) / np.prod(shape[:-1]))
    elif leaf in ('gamma','moving_variance'): w = rng.uniform(.5, 1 if leaf == 'gamma' else 1.5, shape)
    else: w = rng.standard_normal(shape) * .1
    return w.astype(np.float32)

def model_of(depth=18, classes=10, **kw):
    "The encoder, a head of three layers and the linear layer, with the recipe's weights in float64"
    with torch.device('meta'):                          # no need to draw weights that are overwritten
        enc = ResNet(depth, **kw)
        model = SimCLRModel(enc, ProjectionHead(enc.num_features))
        model.supervised = nn.Linear(enc.num_features, classes)
    model.to_empty(device='cpu')
    for m in model.modules():
        if hasattr(m, 'reset_running_stats'): m.reset_running_stats()
    with torch.no_grad():
        for name,(m,k) in _variables(model).items():
            p = getattr(m, k)
            p.copy_(torch.from_numpy(recipe(name, [p.shape[i] for i in _BACK[p.ndim]])).permute(_AXES[p.ndim]))
    return model.double()

def sampled(t, k=64):
    "`k` numbers of a tensor, evenly spread in the reference's layout"
    t = t.detach().permute(_BACK[t.ndim]).flatten().numpy()
    return t if t.size <= k else t[np.linspace(0, t.size-1, k).astype(int)]

def samples(tensors): return np.concatenate([sampled(t) for t in tensors])

@lru_cache
def _pretrain(dtype, seed=None):
    "Four whole steps: two views, NT-Xent, the online linear classifier, weight decay, LARS, warm-up; with a `seed`, the images in another order"
    z, model = fixture('pretrain'), model_of(cifar_stem=True).train().to(dtype)
    variables = _variables(model)
    ps = [getattr(*variables[n]) for n in z['names']]
    opt, sup = LARS(lars_groups(model, 1e-4), lr=0.), model.supervised
    x, y = torch.cat(nchw(z['x']).chunk(2, 1)).to(dtype), torch.from_numpy(z['labels']).argmax(1).repeat(2)
    if seed is not None: i = torch.randperm(len(x)//2, generator=torch.Generator().manual_seed(seed)); i = torch.cat([i, i+len(i)]); x, y = x[i], y[i]
    res = []
    for lr in z['steps'][:,0]:
        for g in opt.param_groups: g['lr'] = lr
        h = model.encoder(x); out = model.head(h); logits = sup(h.detach())
        losses = nt_xent(out, .5, directions='sum'), F.cross_entropy(logits, y), 1e-4*sup.weight.pow(2).sum()/2
        opt.zero_grad(); sum(losses[:2]).backward()
        # the reference adds the classifier's decay to the loss, we to the gradient
        grads = samples([p.grad + (1e-4*p.detach() if p is sup.weight else 0) for p in ps])
        opt.step()
        res.append(dict(losses=np.array([o.item() for o in losses]), gradients=grads, parameters=samples(ps),
                        momentum=samples([opt.state[p]['momentum_buffer'] for p in ps]), outputs=np.concatenate([out.detach().flatten(), logits.detach().flatten()])))
    return res

def pretraining_first_step():
    "Loss, outputs and gradients of the first step, all in float64"
    z, s = fixture('pretrain'), _pretrain(torch.float64)[0]
    return max(worst(s['losses'], z['f64/losses']), l2(s['gradients'], z['f64/grad_samples']),
               l2(s['outputs'], np.concatenate([z['f64/proj_out'].ravel(), z['f64/logits_sup'].ravel()])))

def pretraining_four_steps():
    """Parameters after each of four steps. The reference ran them in float32, and the learning rate is so high that rounding grows
    from step to step: our own float32 runs differ from our float64 run as much, one with the images in another order by up to six times
    as much as the next. So there are three numbers a step: distances from our float64 run of the reference, and of two of our float32 runs."""
    z, wide, single = fixture('pretrain'), _pretrain(torch.float64), [_pretrain(torch.float32, seed) for seed in (None, 0)]
    return [[l2(o, a['parameters']) for o in (z[f'step{i}/param_samples'], *(b[i]['parameters'] for b in single))] for i,a in enumerate(wide)]

def finetuning():
    "Logits, the classifier's update, and every parameter after one step of LARS, for four ways to fine-tune (the reference: float32)"
    z, res = fixture('finetune'), []
    for case,layer,freeze in (('after-1_sel0_lars',0,False), ('after-1_sel1_lars',1,False), ('after2_sel0_lars',0,'group2'), ('after0_sel1_lars',1,'stem')):
        model = model_of().train()
        x, y, v = nchw(z['x']).double(), torch.from_numpy(z['labels']).argmax(1), _variables(model)
        clf = Classifier(model, layer)
        frozen = [p for part in (_frozen_parts(clf, freeze) if freeze else []) for p in part.parameters()]
        for p in frozen: p.requires_grad_(False)
        before = {n: getattr(*o).detach().clone() for n,o in v.items()}
        opt = LARS(lars_groups(clf, float(z[f'{case}/weight_decay'])), lr=.1)
        logits = clf(x); loss = F.cross_entropy(logits, y); loss.backward(); opt.step()
        changed = {n for n,o in v.items() if 'moving' not in n and not torch.equal(getattr(*o), before[n])}
        assert changed == set(z[f'{case}/changed'].tolist()), case
        got, want = samples([getattr(*v[n]) for n in z[f'{case}/names']]), z[f'{case}/param_after_samples']
        res.append((worst(logits, z[f'{case}/logits']), l2(got, want)))
    return res

def _endpoints(case, mode, **kw):
    "Relative difference of each endpoint, over the samples kept"
    z, enc = fixture('resnet'), model_of(**kw).encoder.train(mode == 'train')
    with torch.no_grad(): got = enc.endpoints(nchw(z[f'{case}/x']).double())
    res = []
    for k,v in got.items():
        v = (v.permute(0,2,3,1) if v.ndim == 4 else v).flatten().numpy()
        res.append(l2(v[z[f'{case}/{mode}/{k}/at']], z[f'{case}/{mode}/{k}/is']))
    return max(res)

def encoder(): return max(_endpoints('r18_sk0_32', 'eval', cifar_stem=True), _endpoints('r18_se_64', 'eval', se_ratio=.25), _endpoints('r50_sk1_64', 'eval', depth=50, sk_ratio=1/16))
def encoder_training(): return _endpoints('r18_sk0_32', 'train', cifar_stem=True)

def statistics():
    "Running means, and running variances after PyTorch's n/(n−1) is taken out, of one step in training mode"
    z, enc = fixture('resnet'), model_of(cifar_stem=True).encoder.train()
    bns = [m for m in enc.modules() if isinstance(m, nn.BatchNorm2d)]
    old, n, res = [b.running_var.clone() for b in bns], {}, []
    for b in bns: b.register_forward_hook(lambda m, i, o: n.update({m: i[0].numel()//m.num_features}))
    with torch.no_grad(): enc(nchw(z['r18_sk0_32/x']).double())
    ch, mean, var = (z[f'r18_sk0_32/after/{o}'] for o in ('channel','mean','variance'))
    biased = np.stack([(.9*o + (b.running_var-.9*o)*(n[b]-1)/n[b])[c] for b,o,c in zip(bns, old, ch)])
    plain = np.stack([b.running_var[c] for b,c in zip(bns, ch)])
    return max(worst(np.stack([b.running_mean[c] for b,c in zip(bns, ch)]), mean), worst(biased, var)), float(np.abs(plain/var - 1).max())

def head():
    z, model = fixture('head'), model_of(depth=18)
    res = []
    for mode in ('eval','train'):
        h = torch.from_numpy(z[f'{mode}/h0'])
        with torch.no_grad(): hs = model.head.train(mode == 'train').hiddens(h)
        res += [l2(hs[1][:,::16], z[f'{mode}/h1']), l2(hs[2][:,::16], z[f'{mode}/h2']), l2(hs[3][:,::4], z[f'{mode}/h3']), l2(model.supervised(h).detach(), z[f'{mode}/logits'])]
    return max(res)

def ntxent(chunk=None):
    "Value, gradient (as a share of its length) and accuracy, with normalisation"
    z, values, grads = fixture('loss'), [], []
    for key in (k[:-5] for k in z.files if k.endswith('norm1/loss')):
        name, τ, _ = key.split('/')
        h = torch.from_numpy(z[f'hidden/{name}']).requires_grad_()
        loss = nt_xent(h, float(τ[1:]), directions='sum', chunk_size=chunk); loss.backward()
        values.append(abs(loss.item()-z[f'{key}/loss'])/max(1, z[f'{key}/loss'])); grads.append(worst(h.grad, z[f'{key}/grad']))
        assert abs(contrastive_accuracy(h).item() - z[f'{key}/contrast_acc']) < 1e-6
    return max(values), max(grads), len(values)

def ntxent_replicas():
    "The loss of the reference's 2 and 4 replicas, as one batch (tests/test_distributed.py runs as many processes)"
    z, res = fixture('replicas'), []
    for w in (2, 4):
        zs = [torch.from_numpy(z[f'ntxent_{w}rep/hidden_rep{r}']) for r in range(w)]
        h = torch.cat([o.chunk(2)[v] for v in (0,1) for o in zs]).requires_grad_()
        loss = nt_xent(h, .1, directions='sum'); loss.backward()
        want = [torch.from_numpy(z[f'ntxent_{w}rep/grad_rep{r}']) for r in range(w)]
        res += [abs(loss.item()-z[f'ntxent_{w}rep/mean'])/loss.item(), worst(h.grad, torch.cat([o.chunk(2)[v] for v in (0,1) for o in want]))]
    return max(res)

def distillation():
    "Gradient of the authors' distillation loss (with τ²) with respect to the student"
    z = fixture('loss')
    def grad(T):
        s = torch.from_numpy(z['kd/student_logits']).requires_grad_()
        distillation_loss(s, torch.from_numpy(z['kd/teacher_logits']), T, t_squared=True).backward()
        return worst(s.grad, z[f'kd/T{T}/grad_student'])
    return max(map(grad, (.1, .5, 1., 2.)))

def lars():
    "Parameters and momentum over five steps, six configurations"
    z = fixture('optim')
    names, shapes = z['names'].tolist(), [json.loads(o) for o in z['shapes']]
    unpack = lambda v: [torch.from_numpy(o.copy()).view(*s) for o,s in zip(np.split(v, np.cumsum([int(np.prod(s)) for s in shapes])[:-1]), shapes)]
    three, res = ['batch_normalization','bias','head_supervised'], []
    for config,decay,adapt,kw in (('default',three,three,dict(weight_decay=1e-4)), ('wd0',three,three,{}), ('nesterov',three,three,dict(weight_decay=1e-4, nesterov=True)),
                                  ('eeta01',three,three,dict(weight_decay=1e-4, eeta=.01)), ('no_exclusions',[],[],dict(weight_decay=1e-4)), ('separate_adapt',three,three[:2],dict(weight_decay=1e-4))):
        hit = lambda n, patterns: any(o in n for o in patterns)
        ps = [nn.Parameter(o) for o in unpack(z['init'])]
        opt = LARS([dict(params=[p], decay=not hit(n, decay), adapt=not hit(n, adapt)) for n,p in zip(names, ps)], lr=0., **kw)
        for i,lr in enumerate(z['lrs']):
            for g in opt.param_groups: g['lr'] = float(lr)
            for p,g in zip(ps, unpack(z['grads'][i])): p.grad = g
            opt.step()
            flat = lambda ts: torch.cat([t.detach().flatten() for t in ts])
            res += [worst(flat(ps), z[f'{config}/param'][i]), worst(flat([opt.state[p]['momentum_buffer'] for p in ps]), z[f'{config}/momentum'][i])]
    return max(res)

def schedule():
    "Nine schedules, as a share of the peak"
    def error(config, total_steps, warmup_steps, steps, lr):
        peak = scale_lr(config['learning_rate'], config['train_batch_size'], config['learning_rate_scaling'])
        return worst([warmup_cosine(t, peak, warmup_steps, total_steps) for t in steps], lr)
    return max(error(**o) for o in json.loads((FIXTURES/'optim.json').read_text()))

def _image(z, key): return torch.from_numpy(z[key]).permute(2,0,1)[None]
def _off(y, want):
    k = -(-y.shape[2]//want.shape[2])           # the recorded output is thinned out
    return (y[...,::k,::k] - want).abs().max().item()

def colour_ops():
    "Brightness, contrast, saturation, hue and grey on two images, one with pure and grey colours"
    z, res = fixture('augment'), []
    ops = dict(brightness=adjust_brightness, contrast=adjust_contrast, saturation=adjust_saturation, hue=adjust_hue,
               shift=lambda x,f: adjust_brightness(x, f, add=True))
    for key in (k for k in z.files if k.startswith('img') and '/' in k):
        name, op = key.split('/')
        x, (kind,*f) = _image(z, name), op.split('_')
        res.append(_off(to_grayscale(x) if kind == 'grayscale' else ops[kind](x, float(f[0])), _image(z, key)))
    return max(res), len(res)

def crops(kernel):
    "Crop and resize, and the central crop of evaluation"
    z = fixture('augment')
    boxes, tag = json.loads(str(z['draws']))['boxes'], '' if kernel == 'tf2' else '_tf1'
    u8 = lambda name: _image(z, f'u8/{name}')/255
    res = [_off(crop_resize(u8(n), torch.tensor(boxes[n]), 64, kernel), _image(z, f'cropresize{tag}/{n}_64')) for n in ('land','small')]
    if kernel == 'tf1': return max(res + [_off(eval_crop(u8(n), 64, 'tf1'), _image(z, f'eval_tf1/{n}_64')) for n in ('land','small')])
    return max(res + [_off(eval_crop(u8(n), s), _image(z, f'eval/{n}_{s}')) for n,s in (('land',64), ('sq',96))] + [_off(eval_crop(u8('small'), 224)[...,::3,::3], _image(z, 'eval/small_224'))])

def blur():
    z = fixture('augment')
    corner = gaussian_blur(_image(z, 'blur/corner'), 2., 22)
    return max([_off(gaussian_blur(_image(z, 'blur/in'), s, 3), _image(z, f'blur/32_{s}')) for s in (.1, .7, 2.)]
               + [_off(gaussian_blur(torch.ones(1,1,32,32), 2., 3), _image(z, 'blur/ones_2.0')), _off(corner[...,:32,16:], _image(z, 'blur/corner_2.0'))])

def pipelines():
    "Whole training views from the recorded random draws"
    z, res = fixture('augment'), []
    ops = [lambda x,f: adjust_brightness(x, f), adjust_contrast, adjust_saturation, adjust_hue]
    for run in json.loads(str(z['draws']))['train']:
        x = crop_resize(_image(z, f"u8/{run['image'][3:]}")/255, torch.tensor(run['box']), 64, flip=torch.tensor([run['flip']]))
        for k,f in zip(run.get('order', []), run.get('factors', [])):
            x = (adjust_brightness(x, f, add=True) if k == 0 and run['brightness'] == 'v1' else ops[k](x, f)).clamp(0, 1)
        res.append(_off(x.clamp(0, 1), _image(z, run['key'])))
    return max(res), len(res)

def crop_distribution(n=20_000):
    "Largest distance between the distribution functions of top, left, height, width, area, aspect and the reference's"
    z, res = fixture('augment'), []
    for H,W in ((224,224), (375,500), (500,333), (32,32)):
        b = random_crop_boxes(n, H, W, generator=torch.Generator().manual_seed(0)).double().numpy()
        for c,q in zip([*b.T, b[:,2]*b[:,3]/(H*W), b[:,3]/b[:,2]], z[f'quantiles/{H}x{W}'].astype(float)):
            p = np.linspace(0, 1, len(q))
            res.append(np.maximum((c[:,None] < q-1e-6).mean(0) - p, p - (c[:,None] <= q+1e-6).mean(0)).max())
    return float(max(res))

def checkpoint():
    "What a network written by TensorFlow, read and converted here, answers to four images (float32 on both sides)"
    z, m = fixture('released'), from_tf(FIXTURES/'tf1_r18_w0.125')
    with torch.no_grad():
        got = m.encoder.endpoints(nchw(_images(31, (4,64,64,3))))
        got |= {'proj_head_output': m.head(got['final_avg_pool']), 'logits_sup': m.supervised(got['final_avg_pool'])}
    def thin(v):
        v = (v.permute(0,2,3,1) if v.ndim == 4 else v).flatten().numpy()
        return v[np.linspace(0, v.size-1, min(256, v.size)).astype(int)]
    return max(l2(thin(v), z[f'tf1_r18_w0.125/{k}']) for k,v in got.items() if k != 'initial_conv')

def _images(seed, shape):
    "The images behind the answers: low-frequency patterns and noise"
    rng, (n,h,w,c), out = np.random.RandomState(seed), shape, np.zeros(shape)
    yy, xx = np.meshgrid(np.arange(h)/h, np.arange(w)/w, indexing='ij')
    for i in range(n):
        for k in range(c):
            f, p, a = rng.uniform(.5, 4, 2), rng.uniform(0, 2*np.pi), rng.uniform(.2, .5)
            out[i,:,:,k] = .5 + a*np.sin(2*np.pi*(f[0]*yy + f[1]*xx) + p)
    return np.clip(.7*out + .3*rng.uniform(0, 1, shape), 0, 1).astype(np.float32)

def parameter_counts():
    "The 13 published encoders: trainable numbers, and with batch norm's statistics"
    counts = dict(r50_1x_sk0=(23508032,23561152), r50_1x_sk1=(35215584,35277408), r50_2x_sk0=(93907072,94013312), r50_2x_sk1=(140306048,140428864),
                  r101_1x_sk0=(42500160,42605504), r101_1x_sk1=(64662304,64786144), r101_2x_sk0=(169771136,169981824), r101_2x_sk1=(257132224,257377984),
                  r152_1x_sk0=(58143808,58295232), r152_1x_sk1=(88940896,89119584), r152_2x_sk0=(232253568,232556416), r152_2x_sk1=(353398528,353752896),
                  r152_3x_sk1=(794704160,795235360))
    def off(name, trainable, everything):
        with torch.device('meta'): e = encoder_by_name(name)
        n, stats = sum(p.numel() for p in e.parameters()), sum(b.numel() for k,b in e.named_buffers() if 'num_batches' not in k)
        return max(abs(n-trainable), abs(n+stats-everything))
    return float(max(off(k, *v) for k,v in counts.items())), len(counts)

def initialisation():
    "Standard deviation of every large convolution against 1/√fan_in, and of the head's layers against 0.01"
    torch.manual_seed(0)
    model = SimCLRModel(ResNet(18))
    off = lambda w, std: abs(w.std().item()/std - 1)
    return max([off(m.weight, (m.weight[0].numel())**-.5) for m in model.encoder.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 30_000]
               + [off(l[0].weight, .01) for l in model.head.layers])

def table():
    "Rows of component, what it is compared with, page, worst difference, tolerance"
    value, grad, n = ntxent()
    chunked = max(ntxent(3)[:2])
    four = pretraining_four_steps()
    tuned = finetuning()
    colours, views = colour_ops(), pipelines()
    counts = parameter_counts()
    return [
        ('parameter counts', f'{counts[1]} published encoders, with and without statistics', '02_resnet', counts[0], 0.),
        ('initialisation', 'standard deviation of each large weight, share of the rule (a sample)', '02_resnet', initialisation(), .02),
        ('encoder, evaluation', 'ResNet-18, 18 + SE, 50 + SK: every endpoint, float64', '02_resnet', encoder(), 1e-8),
        ('encoder, training', 'ResNet-18, 3×3 stem: every endpoint, float64', '02_resnet', encoder_training(), 1e-8),
        ('batch norm statistics', 'after one step, n/(n−1) taken out of the variance, float64', '02_resnet', statistics()[0], 2e-8),
        ('projection head', 'each layer, both modes, float64', '03_head', head(), 1e-8),
        ('NT-Xent, value', f'{n} cases, float32', '04_loss', value, 1e-6),
        ('NT-Xent, gradient', f'{n} cases, float32', '04_loss', grad, 2e-6),
        ('NT-Xent, 3 rows at a time', 'the same cases, value and gradient', '04_loss', chunked, 2e-6),
        ('NT-Xent on replicas', '2 and 4 replicas, value and gradient, float32', '04_loss', ntxent_replicas(), 1e-6),
        ('distillation loss', 'gradient at four temperatures, float32', '04_loss', distillation(), 1e-6),
        ('LARS', 'six configurations, five steps each: parameters and momentum, float32', '05_optim', lars(), 1e-6),
        ('learning rate', 'nine schedules, share of the peak, float32', '05_optim', schedule(), 1e-6),
        ('colour ops', f'{colours[1]} outputs, float32', '01_augment', colours[0], 1e-6),
        ('crop, TF2 kernel', 'crops and central crops, float32', '01_augment', crops('tf2'), 1e-6),
        ('crop, TF1 kernel', 'crops and central crops, float32', '01_augment', crops('tf1'), 1e-6),
        ('blur', '3 and 23 taps, float32', '01_augment', blur(), 1e-6),
        ('whole views', f'{views[1]} views from recorded draws, float32', '01_augment', views[0], 2e-6),
        ('random boxes', 'distribution functions, 20 000 draws against 30 000', '01_augment', crop_distribution(), .015),
        ('pretraining, first step', 'outputs, losses, all gradients, float64', '06_pretrain', pretraining_first_step(), 1e-8),
        ('pretraining, parameters after 2, 3, 4 steps', "the reference's float32 from our float64, over our float32's from our float64", '06_pretrain', max(a/max(b) for a,*b in four[1:]), 2.),        # chance: 0.3 to 0.95 seen
        ('fine-tuning, logits', 'four modes, float32 there, float64 here', '07_finetune', max(a for a,_ in tuned), 5e-5),
        ('fine-tuning, parameters after a step', 'four modes, float32 there, float64 here', '07_finetune', max(b for _,b in tuned), 1e-4),
        ('a checkpoint of TensorFlow', 'ResNet-18 of width 1/8: every endpoint, float32', '09b_released', checkpoint(), 2e-6),
    ]

if __name__ == '__main__':
    for name,what,page,diff,tol in table(): print(f'{name:46} {diff:8.1e}  ≤ {tol:7.0e}  {"ok" if diff <= tol else "TOO LARGE"}  {what}')
