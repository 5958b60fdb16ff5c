"""Pictures: one style for every page, and the drawings the demo and the tutorials share"""
import matplotlib.pyplot as plt, numpy as np, torch
from torch import Tensor
import torch.nn.functional as F

__all__ = ['colours', 'labels', 'use_style', 'show_pairs', 'plot_training', 'plot_similarity', 'embed_2d', 'plot_embedding', 'plot_labels']

# Okabe and Ito's palette, told apart by colour-blind readers; one colour a protocol on every page
colours = dict(supervised='#999999', linear_probe='#56B4E9', finetune_layer0='#0072B2', finetune_layer1='#D55E00',
               self_distilled='#009E73', distilled_half_width='#CC79A7')
labels = dict(supervised='supervised', linear_probe='linear probe', finetune_layer0='fine-tuned, layer 0', finetune_layer1='fine-tuned, layer 1',
              self_distilled='self-distilled', distilled_half_width='distilled, half width')

def use_style():
    "matplotlib's settings for the whole site: readable at 700 pixels, no clutter"
    plt.rcParams.update({'figure.dpi': 100, 'figure.figsize': (6, 3.5), 'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False,
                         'axes.grid': True, 'grid.alpha': .25, 'image.cmap': 'gray', 'legend.frameon': False, 'figure.constrained_layout.use': True})

def _picture(x):
    "One image C×H×W in [0,1] as matplotlib wants it"
    x = x.detach().float().cpu().clamp(0, 1)
    return x[0] if len(x) == 1 else x[:3].permute(1,2,0)

def show_pairs(
    a:Tensor, # First views, N×C×H×W in [0,1]
    b:Tensor, # Second views of the same images
    n:int=16, # Pairs shown
    cols:int=8 # Pairs in a row
): # The figure
    "Pairs of views, one above the other"
    n = min(n, len(a)); rows = -(-n//cols)
    fig, axs = plt.subplots(2*rows, min(cols, n), figsize=(min(cols, n)*.85, rows*1.85), squeeze=False)
    for ax in axs.flat: ax.axis('off')
    for i in range(n):
        r, c = divmod(i, cols)
        for k,v in enumerate((a,b)): axs[2*r+k,c].imshow(_picture(v[i]), vmin=0, vmax=1)
    return fig

def plot_training(
    losses, # Contrastive loss of each step
    accuracy=None, # Contrastive top-1 in validation after each epoch, in [0,1]
    smooth:float=0.9 # Of the running mean that is drawn over the single steps
): # The figure
    "The contrastive loss step by step, and the top-1 of the validation images epoch by epoch"
    losses = np.asarray([float(l) for l in losses])
    m, mean = 0., []
    for i,l in enumerate(losses): m = smooth*m + (1-smooth)*l; mean.append(m/(1-smooth**(i+1)))
    fig, axs = plt.subplots(1, 1 if accuracy is None else 2, figsize=(7.5, 2.8), squeeze=False)
    ax = axs[0,0]
    ax.plot(losses, color='#999999', alpha=.4); ax.plot(mean, color=colours['finetune_layer1'])
    ax.set(xlabel='step', ylabel='contrastive loss (nats)')
    if accuracy is not None:
        axs[0,1].plot(range(1, len(accuracy)+1), [100*float(o) for o in accuracy], 'o-', color=colours['finetune_layer0'])
        axs[0,1].set(xlabel='epoch', ylabel='contrastive top-1 (%)')
    return fig

def plot_similarity(
    *zs, # Projections, each 2N×d: first views, then second views
    titles=('before training','after training') # One a matrix
): # The figure
    "The 2N×2N cosine similarities: the bright off-diagonals are the pairs the loss pulls together"
    fig, axs = plt.subplots(1, len(zs), figsize=(3.6*len(zs)+.6, 3.4), squeeze=False)
    for ax,z,t in zip(axs[0], zs, titles):
        z = F.normalize(z.detach().float().cpu(), dim=1)
        im = ax.imshow(z @ z.T, cmap='RdBu_r', vmin=-1, vmax=1)
        ax.grid(False); ax.set(title=t, xlabel='view', ylabel='view')
    fig.colorbar(im, ax=axs[0].tolist(), label='cosine similarity', shrink=.8)
    return fig

def embed_2d(
    h:Tensor, # Features, N×d
    seed:int=0 # Of t-SNE
): # N×2, a numpy array
    "t-SNE (scikit-learn) of features scaled to length 1"
    from sklearn.manifold import TSNE
    return TSNE(init='pca', random_state=seed, perplexity=min(30, (len(h)-1)/3)).fit_transform(F.normalize(h.float().cpu(), dim=1).numpy())

def plot_embedding(
    *ps, # Points, each N×2
    y, # Their classes
    vocab=None, # Class names
    titles=('before training','after training') # One a set of points
): # The figure
    "Points in the plane, coloured by class"
    y, cmap = np.asarray(y), plt.get_cmap('tab10')
    fig, axs = plt.subplots(1, len(ps), figsize=(3.3*len(ps)+1.4, 3.4), squeeze=False)
    for ax,p,t in zip(axs[0], ps, titles):
        for c in np.unique(y): ax.scatter(*p[y==c].T, s=4, color=cmap(int(c)%10), label=str(c) if vocab is None else str(vocab[c]))
        ax.set(title=t, xticks=[], yticks=[]); ax.grid(False)
    axs[0,-1].legend(loc='center left', bbox_to_anchor=(1, .5), markerscale=3, fontsize=8)
    return fig

def plot_labels(
    curves:dict, # Protocol to {labels a class: accuracies in percent, one a seed}
    ax=None # Where to draw
): # The axes
    "Accuracy against labels a class: mean, and the range over seeds"
    if ax is None: _, ax = plt.subplots()
    for name,c in curves.items():
        x = sorted(c); y = [np.atleast_1d(c[k]) for k in x]
        kw = dict(color=colours.get(name), label=labels.get(name, name))
        ax.plot(x, [v.mean() for v in y], 'o-', **kw)
        if any(len(v) > 1 for v in y): ax.fill_between(x, [v.min() for v in y], [v.max() for v in y], color=kw['color'], alpha=.2, lw=0)
    ax.set(xscale='log', xlabel='labelled images a class', ylabel='test accuracy (%)')
    ticks = sorted({k for c in curves.values() for k in c})
    ax.set_xticks(ticks, [str(t) for t in ticks]); ax.minorticks_off()
    ax.legend()
    return ax
