"""Screens: has this input a trigger?"""
