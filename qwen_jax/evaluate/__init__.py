"""The published tables of scores, reproduced: questions in, answers judged, a report out."""
