"""COLT: images of an unlabelled pool join during training, near uncrowded clusters (Bai et al.,
ICLR 2023).
"""

import torch
from sklearn.cluster import KMeans
from torch.nn import functional

from longtail.learn import encode, losses
from longtail.learn.methods.simclr import SimCLR
from longtail.store import processes


class COLT(SimCLR, name="colt"):
    """Every ``repick`` epochs other images of the pool join, near the clusters with the least
    crowded images (Bai et al. 2023).
    """

    mechanism = "picks colt", 0.1
    changes = "images"
    options = {
        "begin": 100,
        "repick": 25,
        "clusters": 10,
        "nearest": 10,
        "domain": 0.2,
        "memory": 0.97,
    }
    settings = {"budget": 10_000}
    published = {
        ("COLT", data, method): {}
        for data in ("cifar10", "cifar100")
        for method in ("simclr", "sdclr", "bcl", "colt", "sdclr+colt", "bcl+colt")
    }
    remembers = {"crowding": 0}
    picks = True

    def __init__(self, run):
        super().__init__(run)
        if not 0 < run.budget <= run.reserve:
            raise ValueError(
                f"{run.name}: cannot pick {run.budget} of a pool of {run.reserve}; give budget=… "
                "in the arm, and a pool"
            )
        if self.own["begin"] < 1:
            raise ValueError(
                f"{run.name}: begin={self.own['begin']}, but first picks follow from an epoch's "
                "scores; give 1 or more"
            )

    def start(self, images, teacher):
        super().start(images, teacher)
        self.state["extras"] = torch.empty(0, dtype=torch.int64, device=images.images.device)

    def extra(self, epoch):
        return super().extra(epoch) + (self.run.budget if epoch >= self.own["begin"] else 0)

    def used(self):
        return torch.cat([super().used(), self.state["extras"]])

    def phase(self):
        return *super().phase(), len(self.state["extras"]) > 0

    def before_epoch(self, encoder, epoch):
        """Cluster the seed's projections and fetch the pool images nearest to each cluster."""
        super().before_epoch(encoder, epoch)
        if epoch < self.own["begin"] or (epoch - self.own["begin"]) % self.own["repick"]:
            return
        rows = encode.embed(encoder, self.images.images)
        seed, pool = functional.normalize(rows).split([self.count, self.run.reserve])
        found = KMeans(self.own["clusters"], n_init=10, random_state=0).fit(seed.cpu().numpy())
        labels, centers = (
            torch.from_numpy(found.labels_).to(seed.device),
            torch.from_numpy(found.cluster_centers_).to(seed),
        )
        picks = colt_sampling(
            self.state["crowding"][: self.count], labels, centers, pool, self.run.budget
        )
        picks = torch.tensor(processes.agreed(picks.tolist()), device=seed.device)
        self.state["extras"] = self.count + picks
        self.note("picks", epoch, picks)

    def objective(self, first, second, index):
        loss = super().objective(first, second, index)
        crowded = crowding(
            first.detach(), second.detach(), self.run.temperature, self.own["nearest"]
        )
        self.remember("crowding", index, crowded, self.own["memory"])
        if not len(self.state["extras"]):
            return loss
        return loss + self.own["domain"] * domain(
            first, second, index >= self.count, self.temperature
        )


def crowding(first, second, temperature, nearest=10):
    """How crowded each image's neighbourhood is: the probability of its ``nearest`` likeliest
    negatives, (n, d), (n, d) -> (n,).

    Mean of both anchors' probabilities for each negative; large for frequent classes. The paper's
    tailness is minus this.
    """
    logits, _, denominator = losses.contrast(first, second, temperature)
    probability = (logits - denominator[:, None]).exp().unflatten(0, (2, len(first))).mean(0)
    own = torch.eye(len(first), dtype=torch.bool, device=first.device).repeat(1, 2)
    negatives = probability.masked_fill(own, 0)
    return negatives.topk(min(nearest, negatives.shape[1]), dim=1).values.sum(1)


def domain(first, second, extra, temperature):
    """COLT's loss of each image: its rows against all others of its domain, seed or ``extra``
    (bool, n), with NT-Xent's denominators.

    Mean of an image's two rows, (n,); zero where the batch has no extra image.
    """
    logits, _, denominator = losses.contrast(first, second, temperature)
    rows = torch.cat([extra, extra])
    same = rows[:, None] == rows
    same.fill_diagonal_(False)
    loss = (denominator[:, None] - logits).where(same, 0).sum(1) / same.sum(1)
    return loss.unflatten(0, (2, -1)).mean(0) * extra.any()


def cluster_budgets(crowded, budget, temperature=1.0):
    """How many images each cluster may take, the more the less crowded it is: mean crowding (c,) ->
    c integers that sum to ``budget``.

    Softmax of the standardised negative, rounded down; the last cluster takes what is left, as in
    the reference.
    """
    spread = crowded.std() if len(crowded) > 1 else crowded.new_zeros(())
    standard = (crowded - crowded.mean()) / spread if spread > 0 else torch.zeros_like(crowded)
    sizes = (torch.softmax(-standard / temperature, 0) * budget).floor().long().tolist()
    return [*sizes[:-1], budget - sum(sizes[:-1])]


def colt_sampling(crowded, labels, centers, pool, budget, temperature=1.0):
    """Which pool images join the training: each cluster in turn takes the free ones nearest to its
    centre -> (budget,) indices.

    crowded (n,) of the seed images, labels (n,) their clusters, centers (c, d), pool (p, d). NaN in
    ``crowded`` is left out of means.
    """
    if budget > len(pool):
        raise ValueError(
            f"the pool has {len(pool)} images, fewer than the budget of {budget}; enlarge the pool "
            "or lower the budget"
        )
    means = torch.stack([crowded[labels == cluster].nanmean() for cluster in range(len(centers))])
    close = functional.normalize(centers, dim=1) @ functional.normalize(pool, dim=1).T
    taken, free = [], torch.ones(len(pool), dtype=torch.bool, device=pool.device)
    for similarity, size in zip(close, cluster_budgets(means, budget, temperature), strict=True):
        order = torch.sort(
            similarity.masked_fill(~free, -torch.inf), descending=True, stable=True
        ).indices[:size]
        free[order] = False
        taken.append(order)
    return torch.cat(taken)
