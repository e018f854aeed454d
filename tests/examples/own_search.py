"""Search with Optuna from Python: any parameter, bad trials ended early, the result in a file that others may share.

python tests/examples/own_search.py
"""

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback

import plif_lightning as pl

EPOCHS = 3


class Pruning(Callback):
    """Reports the validation accuracy of each epoch and ends a trial that Optuna gives up."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.trial.report(trainer.callback_metrics["val/acc"].item(), trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def objective(trial: optuna.Trial) -> float:
    L.seed_everything(2020, verbose=False)
    data = pl.data.Digits(time_steps=4, validation="holdout", batch_size=16)
    task = pl.SpikingClassifier(
        *((1, 8, 8), 10, 4),
        structure="c16k3s1-BN-PLIF-MPk2s2-FC64-PLIF-FC50-PLIF-APk5s5",
        init_tau=trial.suggest_float("init_tau", 1.2, 8.0),
        surrogate_width=trial.suggest_float("surrogate_width", 0.3, 3.0, log=True),
        loss=trial.suggest_categorical("loss", ["per_step", "rate"]),
    )
    trainer = L.Trainer(
        max_epochs=EPOCHS, callbacks=[Pruning(trial)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data)
    return float(trainer.callback_metrics["val/acc"])


def main(trials: int = 8) -> float:
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    study.optimize(objective, n_trials=trials)
    print(f"best: {study.best_params}, {100 * study.best_value:.2f} %")
    return study.best_value


if __name__ == "__main__":
    main()
