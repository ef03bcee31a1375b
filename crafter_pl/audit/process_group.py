"""The processes that share an audit's attacks."""

from datetime import timedelta

from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor

from crafter_pl.device import check_processes, pick_device, usable
from crafter_pl.errors import UserError


class ProcessGroup:
    """This process among those that share the work: started here, by torchrun or by SLURM (Fabric finds out).

    Attributes:
        rank, world: which process this is, of how many.
        device: its own.
    """

    def __init__(self, device: str, devices: int = 1, num_nodes: int = 1) -> None:
        """Start the other processes, or find them.

        Args:
            device: auto, cpu, cuda, ...; with several processes each takes one of that kind.
            devices: processes on each machine.
            num_nodes: machines.

        Raises:
            UserError: there is no such device or there are not so many, or one is named and several are asked
                for.
        """
        if device == "auto" or devices * num_nodes == 1:
            device = pick_device(device)
        self.rank, self.world, self.device = 0, devices * num_nodes, device
        self._fabric: Fabric | None = None
        if devices < 1 or num_nodes < 1:
            raise UserError(f"--devices {devices} and --num_nodes {num_nodes} must be at least 1")
        if device == "cpu":
            check_processes(devices, "--devices")
        if self.world > 1 and ":" in device:
            raise UserError(
                f"--device {device} is one device, but --devices {devices} x {num_nodes} asks for more"
            )
        if self.world == 1:
            return
        with usable(device):
            # They exchange little, and wait for the slowest at the end; one that dies is noticed at once.
            strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=7))
            self._fabric = Fabric(accelerator=device, devices=devices, num_nodes=num_nodes, strategy=strategy)
        self._fabric.launch()
        self.rank, self.device = self._fabric.global_rank, str(self._fabric.device)

    def agree(self, values: Tensor) -> Tensor:
        """The first process's values, on the CPU: what others have computed may differ by rounding."""
        return values if self._fabric is None else self._fabric.broadcast(values)

    def wait(self) -> None:
        """Until all processes are here."""
        if self._fabric is not None:
            self._fabric.barrier()
