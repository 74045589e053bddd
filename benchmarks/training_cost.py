"""Cost of a training step: parameters, operations, memory, and the largest batch for typical GPUs.

    python benchmarks/training_cost.py [--device cuda] [--sizes 0 1 2 3 4 5] [--side 512] [--with-cp]

Without CUDA the memory is estimated as the sum of: the bytes that autograd saves for the backward pass in bfloat16, counted
by storage, times 1.25 for temporary buffers; weights, gradients and the two AdamW moments in float32; and 0.8 GB for CUDA.
The time is estimated as three times the operations of a forward pass at 30 % of the GPU's dense bfloat16 rate. With CUDA
both are measured with batches of the given size.
"""

import argparse
import time

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from model import build
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmseg_ignite.engine.optim_wrappers import half_dtype

CARDS = {'8 GB': (8, 40), '24 GB': (24, 71), '80 GB': (80, 312)}
"""Memory in GB and dense bfloat16 rate in 10^12 operations per second of an RTX 3070, an RTX 3090 and an A100."""
OVERHEAD, SHARE, SLACK = 0.8, 0.3, 1.25


def step(model: nn.Module, batch: int, side: int, device: str) -> None:
    """Run forward pass, loss and backward pass for one batch."""
    inputs = torch.randn(batch, 3, side, side, device=device)
    labels = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.randint(16, (1, side, side), device=device)))
        for _ in range(batch)
    ]
    with torch.autocast(torch.device(device).type, half_dtype(device)):
        losses = model(inputs, labels, mode='loss')
    model.parse_losses(losses)[0].backward()


def forward_operations(size: int, side: int) -> int:
    """Return the operations, two for a multiply-add, of a forward pass for one crop.

    They are counted on tensors without data, since the counter does not know the fused attention of CPUs.
    """
    model = build(size, False, 'cpu').to('meta').eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, side, side, device='meta'))
    return counter.get_total_flops()


def kept_bytes(model: nn.Module, batch: int, side: int, device: str) -> int:
    """Return the bytes saved for the backward pass, without the parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # kept alive, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step(model, batch, side, device)
    return sum(storage.nbytes() for storage in kept.values())


def estimated(size: int, side: int, with_cp: bool = False) -> list[str]:
    """Return a row of the table of estimates."""
    model = build(size, False, 'cpu').train()
    set_recomputing(model, with_cp)
    parameters = sum(p.numel() for p in model.parameters())
    flops = forward_operations(size, side)
    # Use the increase for a second crop: the first also saves the cast weights.
    one, two = (kept_bytes(model, batch, side, 'cpu') for batch in (1, 2))
    fixed = OVERHEAD + 16e-9 * parameters + 1e-9 * (2 * one - two)
    crop = SLACK * 1e-9 * (two - one)
    cells = [f'B{size}', f'{parameters / 1e6:.1f}', f'{flops / 2e9:.1f}', f'{fixed:.1f}', f'{crop:.2f}']
    for memory, rate in CARDS.values():
        batch = int((0.92 * memory - fixed) / crop)
        cells.append(f'{batch} ({3e3 * flops / (SHARE * 1e12 * rate):.1f} ms per crop)' if batch > 0 else '-')
    return cells


def set_recomputing(model: nn.Module, with_cp: bool) -> None:
    """Let the blocks of the encoder keep their inputs only, and compute their maps again in the backward pass."""
    for block in model.modules():
        if hasattr(block, 'with_cp'):
            block.with_cp = with_cp


def measured(size: int, side: int, device: str, batch: int, with_cp: bool = False) -> list[str]:
    """Measure peak memory and milliseconds per step on a CUDA device."""
    model = build(size, False, device).train()
    set_recomputing(model, with_cp)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for number in range(13):
        if number == 3:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            begin = time.perf_counter()
        step(model, batch, side, device)
        optimizer.step()
        optimizer.zero_grad()
    torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - begin) / 10
    peak = f'{torch.cuda.max_memory_allocated(device) / 1e9:.1f}'
    return [f'B{size}', str(batch), peak, f'{1e3 * seconds:.0f}', f'{batch / seconds:.0f}']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--sizes', nargs='+', type=int, default=list(range(6)), choices=range(6))
    parser.add_argument('--side', type=int, default=512, help='crop size in px')
    parser.add_argument('--batch', type=int, default=8, help='batch size with CUDA')
    parser.add_argument('--with-cp', action='store_true', help='with model.backbone.with_cp=True')
    args = parser.parse_args()
    console = Console()
    if args.device.startswith('cuda'):
        rows = [['size', 'batch', 'peak GB', 'ms per step', 'crops/s'], ['---'] * 5]
        rows += [measured(size, args.side, args.device, args.batch, args.with_cp) for size in args.sizes]
    else:
        cards = [f'largest batch, {card}' for card in CARDS]
        rows = [['size', '10^6 parameters', '10^9 mult-adds per crop', 'GB fixed', 'GB per crop', *cards], ['---'] * 8]
        rows += [estimated(size, args.side, args.with_cp) for size in args.sizes]
    for row in rows:
        console.print('| ' + ' | '.join(row) + ' |', soft_wrap=True, highlight=False)


if __name__ == '__main__':
    main()
